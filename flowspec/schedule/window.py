"""How much the pipe can take: every formula that turns a measured profile into windows, sizes and seconds.

Pure arithmetic over a `PipeProfile`; knows no session, no policy and no clock.

    bottleneck(n)  seconds between two segments of n tokens in a full pipe: the slowest stage, the link that is taken
                   longest, or the machine whose stages together have most work per core
    round_trip(n)  seconds from sending a segment of n tokens into an empty pipe to its return
    contended      the work of nodes that share a machine's cores, not a stage's own time, is what limits the pipe
    window         segments in flight that keep the bottleneck busy: round trip / bottleneck, to the nearest whole
                   number, with segments on long links as well as in stages. Not one more: it would wait in front of the
                   bottleneck and be in the way when the next verdict comes, and the segment that is chosen after that
                   verdict is worth more. Fewer for one session alone where stage 1 is the bottleneck (`SPACING`). In a
                   contended pipe at most as many as there are cores beside the drafter's: more would slow each other
                   down
    segment(n)     seconds that a segment of n tokens costs when the window is full: what it must be worth
    queue          segments that stage 1 has not begun: as many as it can compute while one is on the way there and the
                   news of it on the way back, at least one
    slack(n)       how long the next segment may be put off while stage 1 computes one of n tokens
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import ceil

from flowspec.schedule.events import PipeProfile, interpolate

TYPICAL_TOKENS = 8
"""Tokens of a segment for which windows are computed: between a lone root and a full segment."""

ROUNDING = 0.5
"""How much of one bottleneck time a round trip may exceed a whole number before it counts as one more segment."""

SPACING, LEEWAY = 1.32, 0.35
"""How many bottleneck times a segment is to have for itself where stage 1 is the bottleneck and one session has the
pipe, and how many of a round trip's do not count. What stage 1 computes was chosen before it began, so fewer segments,
each of which knows one more verdict, are worth more than a stage that is never idle (simulated with 2 to 18 bottleneck
times in a round trip: up to 6 % faster, and nowhere more than 0.2 % slower). A stage further back drops what died on
the way to it, and other sessions' segments know no less for being many, so there nothing is kept idle."""

AS_SLOW = 0.9
"""Stage 1 counts as the bottleneck from this share of the slowest stage's time on."""

BY_SEGMENT = 0.6
"""A stage is paid by the segment if one token takes at least this share of the time of `TYPICAL_TOKENS`. One that is
paid by the token has no time to lose between two segments."""

CROWDED = 1.6
"""How much longer a segment takes, where nodes share cores, than they measured each for itself: the CPU's caches hold
another node's weights, and threads wait for a core (measured with five nodes on two cores)."""

PUNCTUAL = 0.9
UNPUNCTUAL_SECONDS = 0.001
"""A segment that should arrive when stage 1 becomes free is meant to arrive that much earlier: a share of the time for
which the stage is busy, and a time for software. A stage that waits loses more than a choice that is made earlier."""

SOFTWARE_SECONDS = 0.001
"""A segment takes no less of a node's time, however fast its device is."""

MOST_IN_FLIGHT = 32
"""Segments of a window, however long the links are."""

PREFILL_SIZES = (16, 32, 64, 96, 128)


class PipeModel:
    """What follows from one profile. `alone`: the drafts of one session are all that travels."""

    def __init__(self, profile: PipeProfile, *, alone: bool = False) -> None:
        self.profile = profile
        self.alone = alone
        self.stages = len(profile.stages)
        self.bottleneck = lru_cache(maxsize=256)(self._bottleneck)
        self.segment = lru_cache(maxsize=256)(self._segment)

    def _bottleneck(self, tokens: int) -> float:
        profile = self.profile
        shared = [
            sum(interpolate(curve, tokens) for curve in curves) / max(1, cores) for cores, _, curves in profile.shared
        ]
        return max(profile.slowest(tokens), *profile.carrying, *shared, 1e-9)

    def round_trip(self, tokens: int) -> float:
        return sum(self.profile.stage_time(i, tokens) for i in range(self.stages)) + sum(self.profile.links)

    def _segment(self, tokens: int) -> float:
        seconds = max(self.bottleneck(tokens), self.round_trip(tokens) / self.window)
        return seconds * CROWDED if self.contended else seconds

    @cached_property
    def _scarce_cores(self) -> int | None:
        """Cores of the machine whose nodes take work from each other; None when no machine limits the pipe."""
        # While messages are on long links the cores have nothing to do, so those count in full here.
        own = max(self.profile.slowest(TYPICAL_TOKENS), *self.profile.links, 1e-9)
        scarce = []
        for cores, stages, curves in self.profile.shared:
            work = sum(interpolate(curve, TYPICAL_TOKENS) for curve in curves)
            # The drafter counts as one more stage: its steps take about as long, and run at the same time.
            drafting = work / len(stages) if self.profile.drafter_shares else 0.0
            if (work + drafting) / max(1, cores) > own:
                scarce.append(cores)
        return min(scarce, default=None)

    @property
    def contended(self) -> bool:
        return self._scarce_cores is not None

    @cached_property
    def window(self) -> int:
        ratio = self.round_trip(TYPICAL_TOKENS) / max(self.bottleneck(TYPICAL_TOKENS), SOFTWARE_SECONDS)
        wanted = ceil(ratio - ROUNDING)
        if self._spaced:
            wanted = max(min(2, wanted), ceil((ratio - LEEWAY) / SPACING))
        most = MOST_IN_FLIGHT
        if self._scarce_cores is not None:
            most = min(most, max(1, self._scarce_cores - self.profile.drafter_shares))
        return max(1, min(wanted, most))

    @property
    def _spaced(self) -> bool:
        """One session's drafts, stage 1 is the bottleneck, and it is paid by the segment."""
        if not self.alone:
            return False
        typical = self.profile.stage_time(0, TYPICAL_TOKENS)
        by_segment = self.profile.stage_time(0, 1) >= BY_SEGMENT * typical
        return by_segment and typical >= AS_SLOW * self.bottleneck(TYPICAL_TOKENS)

    @cached_property
    def queue(self) -> int:
        forward = max(self.profile.stage_time(0, TYPICAL_TOKENS), SOFTWARE_SECONDS)
        return min(max(1, ceil(self._way / forward)), MOST_IN_FLIGHT)

    @property
    def _way(self) -> float:
        """Seconds to stage 1 and back."""
        return 2 * self.profile.links[0] if self.profile.links else 0.0

    def slack(self, tokens: int) -> float:
        """Seconds from the news that stage 1 has begun a segment to the moment at which the next one has to leave, so
        that it arrives when the stage is free. 0 where the way there and back takes longer than the forward."""
        busy = self.profile.stage_time(0, tokens) if tokens else 0.0
        return max(0.0, busy * PUNCTUAL - self._way - UNPUNCTUAL_SECONDS)

    def prefill_chunk(self, prompt: int) -> int:
        """Tokens per chunk for which a prompt of that length is through the pipe first."""

        def seconds(size: int) -> float:
            size = min(size, prompt)
            return self.round_trip(size) + (ceil(prompt / size) - 1) * self.bottleneck(size)

        return min(PREFILL_SIZES, key=seconds)
