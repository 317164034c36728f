"""What is freed is kept: faults of memory that was used before."""

import os
import subprocess
import sys

import pytest

PROBE = """
import resource
from prefopt.support.allocator import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)  # zeros that are written, and freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(call: str, **environment: str) -> int:
    code = PROBE.format(call=call)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], env=plain | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_is_fetched_once():
    fresh = faults("")  # 64 MB in pages of 4 kB, or huge ones
    assert faults("keep_freed_memory()") < fresh / 4
    assert faults("keep_freed_memory()", MALLOC_MMAP_MAX_="65536") > fresh / 4, "the user's own setting stays"
