"""A whole pipeline of processes with keys: the same tokens, and nobody else is served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from flowspec.client import Client
from flowspec.cluster import LocalCluster
from flowspec.errors import PeerTimeout, SecurityError
from tests.checkpoints import write_checkpoint
from tests.pipeline.running import alone

PROMPT = [5, 9, 33, 40, 7, 12, 5, 9, 33, 40, 7, 60, 61, 5, 9]
DEADLINE = 60.0


async def test_a_cluster_with_keys_writes_what_the_model_writes_and_serves_its_own_client_alone(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "llama", layers=2)
    async with asyncio.timeout(DEADLINE):
        async with LocalCluster(str(model), 2, dtype="float64", drafter="ngram", secure=True) as cluster:
            assert cluster.topology.keys is not None
            keys = Path(cluster.topology.keys.directory)
            assert (keys / "stage-2.secret").is_file()
            async with cluster.client() as client:
                found = await client.generate(prompt_token_ids=PROMPT, max_new_tokens=24, ignore_eos=True)
            assert list(found.token_ids) == alone(model, PROMPT, 24)
            with pytest.raises(PeerTimeout, match="does it ask for a key"):
                async with Client(cluster.address, connect_timeout=0.5):
                    pass
            with pytest.raises(SecurityError, match="no client's key"):
                async with cluster.client(key=keys / "stage-1.secret"):
                    pass
        assert not keys.exists()  # noqa: ASYNC240
