#!/usr/bin/env bash
# Seen in torch 2.13.0 (CPU build, Linux, OpenMP).
#
# `torch.set_num_threads(n)` looks like a setting of the process. Called in a thread, it changes that thread, and every thread that
# starts afterwards; the main thread, which has used torch before, keeps its own number, and `torch.get_num_threads()` says in each
# thread what holds there. So reading the number in the main thread, to put it back later, does not tell what new threads will have.
#
# Why it matters here: a run that sets its own number of threads from a worker thread (a notebook's executor, a feedback with a time
# limit) is not isolated by saving and restoring the number in the main thread, and sums over another number of threads round
# otherwise, so two runs that should agree to the last digit do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading

import torch


def in_a_thread(function, *arguments):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function(*arguments)))
    thread.start()
    thread.join()
    return answers[0]


torch.set_num_threads(3)
before = torch.get_num_threads(), in_a_thread(torch.get_num_threads)
in_a_thread(torch.set_num_threads, 1)
after = torch.get_num_threads(), in_a_thread(torch.get_num_threads)
print(f"before:                       main thread {before[0]}, a new thread {before[1]}")
print(f"after a thread asked for 1:   main thread {after[0]}, a new thread {after[1]}")
sys.exit(0 if (before, after) == ((3, 3), (3, 1)) else 1)
PYTHON
