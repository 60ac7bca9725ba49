"""Draws the growth of cost as SVG: plot.py RAW OUT.svg. Both axes are logarithmic."""
import html
import math
import re
import sys

from json import loads

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 480, 340, 60, 40, 16, 84
COLOURS = ["#0b6e4f", "#c8553d", "#3d5a80", "#8d6a9f"]
PANELS = [
    ("Hot pair, by live blocks", re.compile(r"hot, (\d+) live")),
    ("Random replacement, by live blocks", re.compile(r"random, (\d+) live")),
    ("Hot pair in turn on streams, by streams", re.compile(r"hot in turn, (\d+) streams?")),
]


def series(lines, pattern):
    """Points by peer; the standard suite's own measures are no part of the growth."""
    found = {}
    for line in lines:
        match = pattern.fullmatch(line["workload"])
        if match and int(match[1]) != 512:
            found.setdefault(line["peer"], []).append((int(match[1]), line["median"]))
    return {peer: sorted(points) for peer, points in found.items()}


def ticks(low, high):
    """Powers of ten between them."""
    return [10**k for k in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def panel(title, by_peer, offset):
    xs = [x for points in by_peer.values() for x, _ in points]
    ys = [y for points in by_peer.values() for _, y in points]
    y_low = 10 ** math.floor(math.log10(min(ys)))
    y_high = 10 ** math.ceil(math.log10(max(ys)))

    def place(x, y):
        across = math.log(x / min(xs)) / math.log(max(xs) / min(xs))
        up = math.log(y / y_low) / math.log(y_high / y_low)
        return (offset + LEFT + across * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))

    out = [f'<text x="{offset + LEFT}" y="22" font-weight="bold">{html.escape(title)}</text>']
    for y in ticks(y_low, y_high):
        left, at = place(min(xs), y)
        out.append(f'<path d="M{left:.0f} {at:.0f}H{offset + WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 8:.0f}" y="{at + 4:.0f}" text-anchor="end">{y} ns</text>')
    for x in ticks(min(xs), max(xs)):
        at, bottom = place(x, y_low)
        out.append(f'<text x="{at:.0f}" y="{bottom + 18:.0f}" text-anchor="middle">{x}</text>')
    for index, (peer, points) in enumerate(by_peer.items()):
        colour = COLOURS[index % len(COLOURS)]
        corners = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        out.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in points:
            out.append('<circle cx="{:.1f}" cy="{:.1f}" r="3.5" fill="{}"/>'.format(
                *place(x, y), colour))
        at = offset + LEFT + index * 130
        out.append(f'<rect x="{at}" y="{HEIGHT - 34}" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{at + 16}" y="{HEIGHT - 25}">{html.escape(peer)}</text>')
    return out


def main():
    with open(sys.argv[1], encoding="utf-8") as raw:
        lines = [line for line in map(loads, raw) if "workload" in line]
    parts = []
    count = 0
    for title, pattern in PANELS:
        by_peer = series(lines, pattern)
        if by_peer:
            parts += panel(title, by_peer, count * WIDTH)
            count += 1
    with open(sys.argv[2], "w", encoding="utf-8") as out:
        out.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{count * WIDTH}" '
                  f'height="{HEIGHT}" font-family="sans-serif" font-size="12">\n'
                  '<rect width="100%" height="100%" fill="white"/>\n')
        out.write("\n".join(parts) + "\n</svg>\n")


main()
