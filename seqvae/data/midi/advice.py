"""What would keep more of a folder of MIDI files: the commonest reasons of a report with the option that helps."""

import re
from collections import Counter

from seqvae.data.midi.melody import BENT, ONSETS, TRIPLETS
from seqvae.data.preparation import Report

NO_TRACK = "no track is one of --tracks"

_METER = re.compile(r"time signature (\S+) \((strict|Magenta|a bar)")
_FEW = re.compile(r"fewer than (\d+) notes")
_METER_HELP = {
    "strict": "use --meter any",
    "Magenta": "leave out --compat magenta and use --meter any",
    "a bar": "use --meter folded",
}


def fixes(report: Report, most: int = 3) -> list[str]:
    """Return at most so many lines, that of the most files lost first."""
    total = report.kept + report.rejected.total()
    files = Counter(report.rejected) + Counter(report.touched)
    meters: dict[str, Counter[str]] = {kind: Counter() for kind in _METER_HELP}
    found: list[tuple[int, int, str]] = []
    for rule, count in files.items():
        whole = report.rejected[rule]  # what is lost whole comes first
        if meter := _METER.match(rule):
            meters[meter[2]][meter[1]] += count
        elif (few := _FEW.match(rule)) and int(few[1]) > 1:
            found.append((whole, count, f"have windows of {rule}: use --min-notes {int(few[1]) - 1}"))
        elif rule.startswith(NO_TRACK):
            found.append((whole, count, "have no such track: see the names in rejected.jsonl for other --tracks"))
    for kind, names in meters.items():
        if names:
            words = [name for name, _ in names.most_common()]
            spelled = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
            whole = sum(n for rule, n in report.rejected.items() if (m := _METER.match(rule)) and m[2] == kind)
            found.append((whole, names.total(), f"are in {spelled}: {_METER_HELP[kind]}"))
    lines = [f"{count:,} of {total:,} files {text}" for _, count, text in sorted(found, reverse=True)]
    onsets, bent, triplets = (report.counted[name] for name in (ONSETS, BENT, TRIPLETS))
    if 2 * triplets > bent > onsets // 20:
        lines.insert(1, f"{triplets:,} of {onsets:,} onsets are near triplets: use --steps-per-quarter 12")
    return lines[:most]
