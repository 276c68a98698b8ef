"""What a machine has is told as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from decode import devices


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_free_memory_is_that_of_the_machine_or_of_the_tightest_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = devices.free_memory()
    assert free is not None
    assert 2**20 < free < 2**50
    outer, inner = tmp_path / "job", tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    for group, most in ((outer, "4000"), (inner, "max")):
        (group / "memory.max").write_text(most)
        (group / "memory.current").write_text("1500")
        (group / "memory.stat").write_text("anon 900\ninactive_file 500\nactive_file 100\n")
    read_text = Path.read_text

    def told(path: Path, **options: str) -> str:
        return "1:cpu:/\n0::/job/step\n" if path.name == "cgroup" else read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", told)
    assert list(devices._left_by_groups(tmp_path)) == [3000]
