"""Which policies there are, and how one is made for a session. `docs/policies.md` says what each stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from flowspec.schedule.autoregressive import Autoregressive
from flowspec.schedule.chunked import Chunked
from flowspec.schedule.continuous import Continuous, ContinuousSettings
from flowspec.schedule.lockstep import Lockstep
from flowspec.schedule.options import (
    FLOWSPEC,
    OPTIONS,
    FlowspecOptions,
    LockstepOptions,
    PipedecOptions,
    PolicyOptions,
    RoundOptions,
)
from flowspec.schedule.pipedec import Pipedec
from flowspec.schedule.policy import Policy
from flowspec.schedule.pruned import Pruned
from flowspec.schedule.session import Session

POLICIES = tuple(OPTIONS)
"""Names of the policies, as a request gives them."""

DRAFTLESS = frozenset({"autoregressive"})
"""Those that never ask a drafter."""


def make_policy(session: Session, settings: ContinuousSettings) -> Policy:
    """The policy that the session asked for, for one epoch of it; `settings` are those of `flowspec` by default."""
    options = session.options
    match session.policy:
        case "autoregressive":
            return Autoregressive(session)
        case "flowspec" if options == FLOWSPEC:
            return Continuous(session, settings)
        case "flowspec":
            return Continuous(session, continuous_settings(settings, options))
        case "chunked":
            return Chunked(session, cast(RoundOptions, options))
        case "pruned":
            return Pruned(session, cast(RoundOptions, options))
        case "pipedec":
            return Pipedec(session, cast(PipedecOptions, options))
        case _:
            return Lockstep(session, cast(LockstepOptions, options))


def continuous_settings(settings: ContinuousSettings, options: PolicyOptions) -> ContinuousSettings:
    """`settings` with what a request's options say."""
    asked = cast(FlowspecOptions, options)
    return replace(
        settings,
        tree=asked.tree,
        segment=asked.segment,
        score_order=asked.score_order,
        expansion=asked.expansion,
        growth=replace(settings.growth, expand=asked.expand, width=asked.width or settings.growth.width),
    )
