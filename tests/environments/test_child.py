"""Tools in a child process: whatever they do there, this process goes on, and says what happened."""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _tools
import pytest

from prefopt import PrefoptError
from prefopt.environments.child import Child, Limits, Reply
from prefopt.environments.in_child import Python

QUICK = Limits(seconds=0.3, megabytes=300)


@pytest.fixture
def child() -> Any:
    started = Child(_tools.misbehave, QUICK)
    yield started
    started.close()


def test_a_function_answers_as_it_would_here(child: Any) -> None:
    reply = child.call(None, {"how": "text", "size": 5}, 100)
    assert reply == Reply("yyyyy", 5)
    first = child._process.pid
    assert child.call(None, {"how": "text", "size": 1}, 100).value == "y" and child._process.pid == first


@pytest.mark.parametrize(
    ("how", "size", "kind", "text"),
    [
        ("raise", 0, "raised", "error: ValueError: no such thing"),
        ("exit", 0, "raised", "error: SystemExit: 3"),
        ("die", 0, "died", ""),
        ("hang", 0, "time", ""),
        ("spin", 0, "time", ""),
        ("memory", 2000, "memory", ""),
        ("print", 10_000_000, "", "printed"),
        ("text", 10_000_000, "", "y" * 50),
        ("half", 3, "", "???"),
    ],
)
def test_what_a_tool_does_wrong_is_its_reply(child: Any, how: str, size: int, kind: str, text: str) -> None:
    reply = child.call(None, {"how": how, "size": size}, 50)
    assert (reply.kind, reply.value) == (kind, text)
    assert child.call(None, {"how": "text", "size": 3}, 50).value == "yyy"  # and it serves again


def test_random_numbers_follow_the_seed(child: Any) -> None:
    draws = [child.call(None, {"how": "random"}, 50, seed).value for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_threads_that_were_given_up_mix_up_nothing(child: Any) -> None:
    """A run waits for a call in a thread, and gives up on it after its own time."""
    sizes = [5, 0, 7, 3]
    with ThreadPoolExecutor(4) as pool:
        how = ["text", "hang", "text", "text"]
        calls = [pool.submit(child.call, None, {"how": h, "size": s}, 50) for h, s in zip(how, sizes, strict=True)]
        assert [call.result().value for call in calls] == ["yyyyy", "", "yyyyyyy", "yyy"]
        waiting = pool.submit(child.call, None, {"how": "hang"}, 50, 0, 60.0)
        time.sleep(0.2)
        child.close()
        assert waiting.result(timeout=5).kind == "died"


def test_an_object_keeps_its_state_until_its_end() -> None:
    child = Child(_tools.Counter, QUICK)
    assert child.call("reset", {"row": {"start": 3}, "seed": 0}, None).value == "It begins at 3."
    assert [child.call("add", {"number": 2}, 50).value for _ in range(2)] == ["5", "7"]
    assert child.call("wait", {}, 50).kind == "time"
    assert child.call("add", {"number": 2}, 50).value.startswith("error: AttributeError")  # begun by nobody
    child.close()


def test_what_a_child_starts_ends_with_it(tmp_path: Path) -> None:
    child = Child(Python, QUICK, confined=True)
    code = "import subprocess, os\np = subprocess.Popen(['sleep', '1000'])\nprint(p.pid, os.getcwd())"
    pid, folder = child.call("python", {"code": code}, 500, seconds=5).value.split()
    assert Path(folder).is_dir()
    child.close()
    assert not Path(folder).exists()
    deadline = time.monotonic() + 5
    while _alive(int(pid)):  # until its new parent has buried it
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow  # another process imports prefopt
def test_a_child_ends_without_this_process() -> None:
    """Killed, this process can end nobody; a child that waits, sleeps or computes ends by itself."""
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(_tools.__file__).parent)!r})
import _tools
from prefopt.environments.child import Child, Limits
children = [Child(_tools.misbehave, Limits(seconds=0.5)) for _ in range(3)]
for child, how in zip(children, ("text", "hang", "spin")):
    child.call(None, {{"how": "text", "size": 1}}, 50, seconds=5)
    child._send({{"method": None, "arguments": {{"how": how}}, "seed": 0, "characters": 50}})
print(*(child._process.pid for child in children), flush=True)
os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    deadline = time.monotonic() + 10
    while any(_alive(int(pid)) for pid in ended.stdout.split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(ended.stdout.split()) == 3, ended.stderr


def test_code_of_a_policy_sees_little_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    child = Child(Python, Limits(seconds=5), confined=True)
    names = child.call("python", {"code": "import os\nsorted(os.environ), os.listdir()"}, 1000).value
    child.close()
    assert "SECRET" not in names and names.endswith("[])")


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("x = 2\nprint('a')\nx + 1", "", "a\n3"),
        ("None", "", ""),
        ("for c in {'a', 'b', 'c'}: print(c, end='')", "", "cab"),  # the same in every child
        ("print(1)\nraise KeyError('k')", "raised", "1\nTraceback.*\n    raise KeyError\\('k'\\)\nKeyError: 'k'"),
        ("print(", "raised", "SyntaxError: '\\(' was never closed"),
        ("input()", "raised", "EOFError"),
        ("import sys; print(3); sys.exit(1)", "", "3"),
        ("if __name__ == '__main__': print('main')", "", "main"),
    ],
)
def test_python_says_what_it_prints_and_what_it_raises(interpreter: Child, code: str, kind: str, text: str) -> None:
    reply = interpreter.call("python", {"code": code}, 2000)
    assert reply.kind == kind
    assert re.fullmatch(text if not kind else f".*{text}.*", reply.value, re.DOTALL)


@pytest.fixture(scope="module")
def interpreter() -> Any:
    started = Child(Python, Limits(seconds=5))
    yield started
    started.close()


def test_names_last_for_the_episode_alone() -> None:
    one, other = Child(Python, QUICK), Child(Python, QUICK)
    one.call("python", {"code": "import math; math.pi = x = 3"}, 50, seconds=5)
    assert one.call("python", {"code": "x"}, 50, seconds=5).value == "3"
    assert other.call("python", {"code": "import math; math.pi > 3"}, 50, seconds=5).value == "True"
    one.close()
    other.close()


def local() -> Any:
    def tool() -> str:
        """Within."""
        return ""

    return tool


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            local(),
            "local.<locals>.tool cannot run in a child process, which finds functions and classes by their files",
        ),
        (_tools.Counter().add, "Counter.add cannot run in a child"),
        (len, "len cannot run in a child"),
    ],
)
def test_what_no_other_process_finds_is_refused(target: Any, message: str) -> None:
    with pytest.raises(PrefoptError, match=message):
        Child(target, QUICK)


def test_what_cannot_be_loaded_is_the_users_to_mend() -> None:
    with pytest.raises(PrefoptError, match="Unloadable cannot be loaded in a child process: OSError: no database"):
        Child(_tools.Unloadable, QUICK).call("look", {}, 50)


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"megabytes": -1}])
def test_limits_are_positive(limits: Any) -> None:
    with pytest.raises(ValueError, match="limits are positive"):
        Limits(**limits)
