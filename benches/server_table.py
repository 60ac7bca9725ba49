"""Adds up the rounds of the example server and prints tables.

Each line of RAW is one run: what cpp_server --json prints, with the name of the allocator and the
round. What is shown is the median of the rounds. Ratios are plugalloc's value over the other's in
the same round, and again the median of these, so that a machine that is slower in one round
than in another does not count.
"""
import argparse
import collections
import datetime
import json
import statistics

OURS = "plugalloc"
MIB = 1 << 20
COLUMNS = {
    "requests/s": lambda run: run["requests_per_second"],
    "p50 us": lambda run: run["p50_us"],
    "p90 us": lambda run: run["p90_us"],
    "p99 us": lambda run: run["p99_us"],
    "max us": lambda run: run["max_us"],
    "live peak MiB": lambda run: run["live_peak"] / MIB,
    "reserved peak MiB": lambda run: run["reserved_peak"] / MIB,
    "reserved/live": lambda run: run["reserved_peak"] / run["live_peak"],
    "device MiB at end": lambda run: run["used_at_end"] / MIB,
    "allocations/s": lambda run: run["allocations"] / run["seconds"],
    "refused": lambda run: run["refused"],
    "wrong": lambda run: run["wrong"],
}
RATIOS = ["requests/s", "p50 us", "p99 us", "reserved peak MiB", "device MiB at end"]


def number(value):
    if value == int(value) or value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def show(title, columns, rows):
    """An aligned table in the form of Markdown; `rows` are a name and values."""
    first = max(len(name) for name, _ in rows)
    texts = [(name, [number(value) for value in values]) for name, values in rows]
    widths = [max([len(column)] + [len(texts[r][1][c]) for r in range(len(texts))])
              for c, column in enumerate(columns)]
    print(f"\n{title}\n")
    print("| " + " | ".join([" " * first] + [c.rjust(w) for c, w in zip(columns, widths)]) + " |")
    print("|" + "|".join(["-" * (first + 2)] + ["-" * (w + 1) + ":" for w in widths]) + "|")
    for name, values in texts:
        cells = [name.ljust(first)] + [v.rjust(w) for v, w in zip(values, widths)]
        print("| " + " | ".join(cells) + " |")


def ratio(runs, name, column):
    """plugalloc's value over that of another allocator: the median over the rounds of both."""
    value = COLUMNS[column]
    quotients = [value(runs[OURS][r]) / value(runs[name][r])
                 for r in runs[OURS] if r in runs[name] and value(runs[name][r]) > 0]
    return statistics.median(quotients)


def tables(shapes, runs):
    rows = [(name, [statistics.median(value(run) for run in rounds.values())
                    for value in COLUMNS.values()]) for name, rounds in runs.items()]
    show(f"{shapes.capitalize()} shapes", list(COLUMNS), rows)
    others = [name for name in runs if name != OURS and OURS in runs]
    if not others:
        return
    show(f"plugalloc over the other, {shapes} shapes", RATIOS,
         [(name, [ratio(runs, name, column) for column in RATIOS]) for name in others])
    fastest = min(others, key=lambda name: ratio(runs, name, "requests/s"))
    print(f"\nThroughput over that of the fastest other, {fastest}: "
          f"{ratio(runs, fastest, 'requests/s'):.3f}")
    if "cudaMallocAsync" in others:
        print(f"Reserved peak over that of cudaMallocAsync: "
              f"{ratio(runs, 'cudaMallocAsync', 'reserved peak MiB'):.3f}")


def write(path, about, by_shapes):
    with open(path, "w", encoding="utf-8") as out:
        print(json.dumps(about), file=out)
        for shapes, runs in by_shapes.items():
            for rounds in runs.values():
                for run in rounds.values():
                    print(json.dumps(run), file=out)
            for name in runs if OURS in runs else []:
                if name != OURS:
                    ratios = {column: round(ratio(runs, name, column), 4) for column in RATIOS}
                    print(json.dumps({"plugalloc_over": name, "shapes": shapes, **ratios}),
                          file=out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("raw")
    parser.add_argument("--machine")
    parser.add_argument("--rounds")
    parser.add_argument("--json")
    options = parser.parse_args()
    by_shapes = collections.defaultdict(lambda: collections.defaultdict(dict))
    with open(options.raw, encoding="utf-8") as lines:
        for line in lines:
            run = json.loads(line)
            by_shapes[run["shapes"]][run["name"]][run["round"]] = run
    if not by_shapes:
        raise SystemExit("no run gave a result")
    one = next(iter(next(iter(next(iter(by_shapes.values())).values())).values()))
    about = {"machine": options.machine, "date": datetime.date.today().isoformat(),
             "device": one["device"], "device_name": one["device_name"],
             "workers": one["workers"], "rounds": int(options.rounds)}
    print(f"{about['date']}, {about['machine']}; device {about['device']} "
          f"({about['device_name']}), {about['workers']} workers, rounds: {about['rounds']}")
    for shapes, runs in by_shapes.items():
        tables(shapes, runs)
    if options.json:
        write(options.json, about, by_shapes)


main()
