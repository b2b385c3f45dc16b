"""Where a song's bars begin and how long they are, after one of three rules."""

from bisect import bisect_left, bisect_right
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from seqvae.data.midi.notes import Song

METERS = ("strict", "any", "folded")
STRICT_METERS = ("4/4", "2/2", "2/4")
LONGEST_BAR = 6  # quarter notes: 12/8, 6/4 and 3/2

_NEVER = 2**62  # ticks


class Meter(NamedTuple):
    """A time signature."""

    over: int
    under: int

    def __str__(self) -> str:
        return f"{self.over}/{self.under}"

    def steps(self, steps_per_quarter: int) -> Fraction:
        """Return the length of a bar."""
        return Fraction(4 * steps_per_quarter * self.over, self.under)


COMMON = Meter(4, 4)


class Stretch(NamedTuple):
    """The music from one change to the next; `refusal` is the rule that leaves it out, if one does."""

    start: int  # ticks
    end: int
    bar_line: int  # a tick that bars are counted from, at `start` or before it
    meter: Meter
    bar: Fraction  # steps; a whole number of them where there is no refusal
    refusal: str = ""


def stretches(song: Song, rule: str, steps_per_quarter: int = 4, split_on_tempo: bool = False) -> list[Stretch]:
    """Return the song's stretches, one after another.

    "strict" keeps 4/4, 2/2 and, by pairs of bars, 2/4; "any" keeps every metre whose bars are whole numbers of steps
    and six quarter notes at most; "folded" takes the whole song for one stretch of 4/4. A signature that changes
    neither the metre nor the bar lines begins no new stretch; with `split_on_tempo` a change of tempo does, though it
    moves no bar line.
    """
    found: list[Stretch] = []
    signatures = {0: COMMON, **{tick: Meter(over, under) for tick, over, under in song.time_signatures}}
    for tick, signature in signatures.items() if rule != "folded" else [(0, COMMON)]:
        meter, bar, refusal = _counted(signature, rule, steps_per_quarter)
        if found and (meter, refusal) == (found[-1].meter, found[-1].refusal):
            passed = (tick - found[-1].start) * steps_per_quarter  # steps, in parts of which song.resolution make one
            if passed * bar.denominator % (song.resolution * bar.numerator) == 0:
                continue
        found.append(Stretch(tick, _NEVER, tick, meter, bar, refusal))
    found = [a._replace(end=b.start) for a, b in pairwise(found)] + found[-1:]
    return _split(found, [tick for tick, _ in song.tempos]) if split_on_tempo else found


@lru_cache  # a song says few metres, but may say them often
def _counted(meter: Meter, rule: str, steps_per_quarter: int) -> tuple[Meter, Fraction, str]:
    """Return the metre that a time signature counts as, the steps of its bar, and the rule that leaves it out."""
    refusal, bar = "", meter.steps(steps_per_quarter)
    if rule == "strict" and str(meter) in STRICT_METERS:
        meter, bar = COMMON, COMMON.steps(steps_per_quarter)
    elif rule == "strict":
        refusal = f"time signature {meter} (strict keeps {', '.join(STRICT_METERS)})"
    elif bar.denominator > 1:
        refusal = f"time signature {meter} (a bar of {float(bar):g} steps)"
    elif bar > LONGEST_BAR * steps_per_quarter:
        refusal = f"time signature {meter} (a bar of more than {LONGEST_BAR} quarter notes)"
    return meter, bar, refusal


def _split(found: list[Stretch], ticks: list[int]) -> list[Stretch]:
    """Cut the stretches at these ticks, without moving their bar lines."""
    result = []
    for stretch in found:
        inside = ticks[bisect_right(ticks, stretch.start) : bisect_left(ticks, stretch.end)]
        cuts = [stretch.start, *inside, stretch.end]
        result += [stretch._replace(start=a, end=b) for a, b in pairwise(cuts)]
    return result


def meter_of(bar: Fraction, steps_per_quarter: int) -> Meter | None:
    """Return the plainest metre with a bar of so many steps: 3/4 rather than 6/8; None where there is none."""
    for under in (4, 8, 16):
        over = bar * under / (4 * steps_per_quarter)
        if over.denominator == 1 and over >= 1:
            return Meter(int(over), under)
    return None
