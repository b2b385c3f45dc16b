"""What would keep more of a folder of MIDI files: the commonest reasons of a report with the option that helps."""

import re
from collections import Counter

from seqvae.data.midi.drums import NO_DRUMS
from seqvae.data.midi.melody import BENT, ONLY_DRUMS, ONSETS, TRIPLETS
from seqvae.data.preparation import Report

NO_TRACK = "no track is one of --tracks"
FOR_TRIPLETS = "--steps-per-quarter 12"

_METER = re.compile(r"time signature (\S+) \((strict|Magenta|a bar)")
_FEW = re.compile(r"fewer than (\d+) notes")
_OTHER_KIND = {
    ONLY_DRUMS: "hold drums only: use --kind drums",
    NO_DRUMS: "hold no drums: use --kind melody",
}


def fixes(report: Report, part: str = "melody", most: int = 3) -> list[str]:
    """Return at most so many lines for who prepares a part, that of the most files lost first.

    Another kind of dataset is a line where it would keep more files than are kept.
    """
    total = report.kept + report.rejected.total()
    files = Counter(report.rejected) + Counter(report.touched)
    help_of = {
        "strict": "use --meter any" if part == "melody" else "use --meter folded",
        "Magenta": "leave out --compat magenta and use --meter any",
        "a bar": "use --meter folded",
    }
    meters: dict[str, Counter[str]] = {kind: Counter() for kind in help_of}
    found: list[tuple[int, int, str]] = []
    for rule, count in files.items():
        whole = report.rejected[rule]  # what is lost whole comes first
        if meter := _METER.match(rule):
            meters[meter[2]][meter[1]] += count
        elif (few := _FEW.match(rule)) and int(few[1]) > 1:
            found.append((whole, count, f"have windows of {rule}: use --min-notes {int(few[1]) - 1}"))
        elif rule.startswith(NO_TRACK):
            found.append((whole, count, "have no such track: see the names in rejected.jsonl for other --tracks"))
        elif rule in _OTHER_KIND and whole > report.kept:
            found.append((whole, count, _OTHER_KIND[rule]))
    for kind, names in meters.items():
        if names:
            words = [name for name, _ in names.most_common()]
            spelled = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
            whole = sum(n for rule, n in report.rejected.items() if (m := _METER.match(rule)) and m[2] == kind)
            found.append((whole, names.total(), f"are in {spelled}: {help_of[kind]}"))
    lines = [f"{count:,} of {total:,} files {text}" for _, count, text in sorted(found, reverse=True)]
    onsets, bent = (report.counted[name] for name in (ONSETS, BENT))
    if bent > onsets // 20 and need_triplets(report, part):
        lines.insert(1, f"{report.counted[TRIPLETS]:,} of {onsets:,} onsets are near triplets: use {FOR_TRIPLETS}")
    return lines[:most]


def need_triplets(report: Report, part: str) -> bool:
    """Return whether most onsets off the grid are triplets', and the part may have steps for them."""
    return part == "melody" and 2 * report.counted[TRIPLETS] > report.counted[BENT]
