"""Adds up the rounds of the benchmark programs and prints tables; with --json, objects.

Each line of RAW is one measure of one process: {"peer", "workload", "unit", "median", "best"}.
What is printed is the median of the medians and the best of the bests. Ratios compare within this
run; a ratio above 1 means that plugalloc is that many times as fast.
"""
import argparse
import datetime
import json
import statistics

# Who is compared with which of plugalloc's ways in; all others with "plugalloc C++".
COUNTERPARTS = {"torch DataPtr": "plugalloc DataPtr", "torch pluggable": "plugalloc pluggable"}
OURS = "plugalloc C++"


def read(path):
    """Measures by (peer, workload), in the order of their first appearance."""
    measures = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            key = (one["peer"], one["workload"])
            measures.setdefault(key, {"unit": one["unit"], "medians": [], "bests": []})
            measures[key]["medians"].append(one["median"])
            measures[key]["bests"].append(one["best"])
    for one in measures.values():
        one["median"] = statistics.median(one["medians"])
        one["best"] = min(one["bests"]) if one["unit"] == "ns" else max(one["bests"])
    return measures


def ratio(measures, kind, peer, workload):
    """How many times as fast plugalloc is, by medians or bests; None where nothing compares."""
    theirs = measures.get((peer, workload))
    ours = measures.get((COUNTERPARTS.get(peer, OURS), workload))
    if theirs is None or ours is None or peer.startswith("plugalloc"):
        return None
    quotient = theirs[kind] / ours[kind]
    return quotient if theirs["unit"] == "ns" else 1 / quotient


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def show(title, rows, columns, cell):
    """One aligned table, in the form of Markdown; columns and rows without a value are left out."""
    cells = {(row, column): cell(row, column) for row in rows for column in columns}
    columns = [c for c in columns if any(cells[row, c] is not None for row in rows)]
    rows = [r for r in rows if any(cells[r, column] is not None for column in columns)]
    if not rows:
        return
    first = max(len(row) for row in rows + [""])
    widths = [max([len(c)] + [len(number(cells[row, c])) for row in rows]) for c in columns]
    print(f"\n{title}\n")
    head = [" " * first] + [c.rjust(w) for c, w in zip(columns, widths)]
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join(["-" * (first + 2)] + ["-" * (w + 1) + ":" for w in widths]) + "|")
    for row in rows:
        values = [number(cells[row, c]).rjust(w) for c, w in zip(columns, widths)]
        print("| " + " | ".join([row.ljust(first)] + values) + " |")


def group(workload):
    if "in turn" in workload or workload.endswith(" live") and workload != "random, 512 live":
        return "growth"
    if "history" in workload:
        return "history rate" if "thread" in workload else "history"
    if workload.endswith("reads") or workload.endswith("statistics read"):
        return "statistics"
    return "rate" if "thread" in workload else "time"


def tables(measures):
    peers = list(dict.fromkeys(peer for peer, _ in measures))
    workloads = list(dict.fromkeys(workload for _, workload in measures))

    def value(kind):
        return lambda row, column: measures.get((column, row), {}).get(kind)

    titles = {
        "time": "Nanoseconds for an allocation and its free",
        "rate": "Million pairs a second, all threads together",
        "growth": "Growth: nanoseconds a pair",
        "history": "A history is recorded: nanoseconds a pair",
        "history rate": "A history is recorded: million pairs a second",
        "statistics": "Statistics read by another thread every millisecond: nanoseconds a pair",
    }
    for name, title in titles.items():
        rows = [workload for workload in workloads if group(workload) == name]
        show(f"{title} (median)", rows, peers, value("median"))
        if name in ("time", "rate"):
            show(f"{title} (best)", rows, peers, value("best"))
    rows = [workload for workload in workloads if group(workload) in ("time", "rate")]
    for kind in ("median", "best"):
        show(f"Times as fast as the peer ({kind} over {kind})", rows, peers,
             lambda row, column: ratio(measures, kind, column, row))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("raw")
    for option in ("machine", "device", "runtime", "rounds", "json"):
        parser.add_argument(f"--{option}")
    options = parser.parse_args()
    measures = read(options.raw)
    about = {
        "machine": options.machine,
        "date": datetime.date.today().isoformat(),
        "device": options.device,
        "runtime": options.runtime,
        "rounds": options.rounds,
    }
    print(f"{about['date']}, {options.machine}; plugalloc on device {options.device}, PyTorch on "
          f"the {options.runtime} runtime; rounds: {options.rounds}")
    tables(measures)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            print(json.dumps(about), file=out)
            for (peer, workload), one in measures.items():
                line = {"peer": peer, "workload": workload, "unit": one["unit"],
                        "median": one["median"], "best": one["best"]}
                for kind in ("median", "best"):
                    times = ratio(measures, kind, peer, workload)
                    if times is not None:
                        line[f"times_as_fast_by_{kind}"] = round(times, 3)
                print(json.dumps(line), file=out)


main()
