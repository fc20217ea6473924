"""What programs print when something fails them: the end of a log, searched for what names the cause. Pure.

`tests/launch/oom_messages.json` has real messages, each with its source, for which this must find the right symptom.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Symptom(Enum):
    """What a line of a log says."""

    #: GPU memory ran out
    VRAM_OOM = "vram-oom"
    #: the GPU broke: memory that cannot be corrected, or off the bus
    GPU_LOST = "gpu-lost"
    #: one of the program's own processes was killed by KILL
    KILLED = "killed"
    #: an allocation of host memory was refused
    HOST_MEMORY = "host-memory"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log; the larger `place`, the later. Places mean nothing else."""

    text: str
    place: int


#: A text that is looked for, which is fast, and what the line around it must match besides, if anything. Where that
#: has a group named `raised`, this must stand where a program prints an exception, not within a sentence about one.
_Sign = tuple[str, str | None]

_SIGNS: Mapping[Symptom, tuple[_Sign, ...]] = {
    Symptom.VRAM_OOM: (
        # PyTorch: a RuntimeError before 1.13, then torch.cuda.OutOfMemoryError, then torch.OutOfMemoryError
        ("out of memory. Tried to allocate", r"\b(?:CUDA|HIP) out of memory\. Tried to allocate \d"),
        ("OutOfMemoryError: ", r"\b(?P<raised>torch(?:\.cuda)?\.OutOfMemoryError): \S"),
        # JAX, old spelling and new. What follows is `allocating` where a CPU's memory ran out.
        ("Out of memory while trying to allocate", r"(?:RESOURCE_EXHAUSTED|Resource exhausted): Out of memory while"),
        ("Failed to allocate request for", r"(?:RESOURCE_EXHAUSTED|Resource exhausted): Failed .* on device ordinal"),
        # TensorFlow says the same of host memory, and then names a CPU
        ("OOM when allocating tensor", r"OOM when allocating tensor with shape(?!.*(?:device:CPU|allocator \w*cpu))"),
        # CuPy, as a class and as the message alone, since version 7 and before
        ("cupy.cuda.memory.OutOfMemoryError", None),
        ("(allocated so far", r"\bOut of memory allocating [\d,]+ bytes \(allocated so far"),
        ("out of memory to allocate", r"\bout of memory to allocate \d+ bytes \(total \d+ bytes"),
        # llama.cpp and others built on ggml; `CUDA_Host` would be memory of the host
        ("cudaMalloc failed: out of memory", None),
        ("failed to allocate CUDA", r"\bfailed to allocate CUDA\d+ buffer of size"),
        ("CUDA error 2 at", r"\bCUDA error 2 at \S+: out of memory"),
        # vLLM, which measures before it allocates
        ("No available memory for the cache blocks", None),
        ("is less than desired GPU memory utilization", None),
        ("CUDA out of memory occurred when warming up", None),
        ("is larger than the available KV cache memory", None),
        ("is larger than the maximum number of tokens that can be stored in KV cache", None),
        # NCCL
        ("Cuda failure", r"\bCuda failure (?:\d+ )?'out of memory'"),
        # cuBLAS: "usually caused by a cudaMalloc() failure" (its documentation of the status codes)
        ("CUBLAS_STATUS_ALLOC_FAILED", None),
        # CUDA's own names for it: runtime and driver, as many programs print them
        ("CUDA error: out of memory", None),
        (" runtime error (2) : out of memory", None),
        ("CUDA_ERROR_OUT_OF_MEMORY", None),
        ("cudaErrorMemoryAllocation", None),
    ),
    # What CUDA's headers say of each code (driver_types.h): the device's memory or link broke, or the device is gone.
    # Codes that a program's own mistake brings about as well (719, 999) prove nothing, nor does 46, which a GPU in
    # exclusive mode gives too: for those NVML is asked.
    Symptom.GPU_LOST: (
        ("uncorrectable ECC error encountered", None),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", None),
        ("cudaErrorECCUncorrectable", None),
        ("uncorrectable NVLink error detected", None),
        ("CUDA_ERROR_NVLINK_UNCORRECTABLE", None),
        ("cudaErrorNvlinkUncorrectable", None),
        ("GPU is lost", None),
        ("GPU has fallen off the bus", None),
    ),
    Symptom.KILLED: (
        # PyTorch; its launcher, which counts signals as negative exit codes; joblib
        ("is killed by signal: Killed", r"\bDataLoader worker \(pid(?:\(s\))? [\d, ]+\) is killed"),
        ("(exitcode: -9)", None),
        ("Signal 9 (SIGKILL) received by PID", None),
        ("SIGKILL(-9)", None),
        # a shell, of what it ran: `run.sh: line 3: 4242 Killed   python train.py`
        (" Killed", r": line \d+:\s+\d+ Killed\b"),
    ),
    Symptom.HOST_MEMORY: (
        # Python and NumPy; C++; C's ENOMEM; PyTorch on the host; Java
        ("MemoryError", r"^(?:[\w.]+\.)?_?(?:Array)?MemoryError(?::|$)"),
        ("std::bad_alloc", r"std::bad_alloc(?!: cuda)"),
        ("[Errno 12] Cannot allocate memory", None),
        ("DefaultCPUAllocator: ", r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)"),
        ("java.lang.OutOfMemoryError", None),
        ("error='Cannot allocate memory' (errno=12)", None),
    ),
}
_RULES = [
    (symptom, literal, None if pattern is None else re.compile(pattern))
    for symptom, signs in _SIGNS.items()
    for literal, pattern in signs
]
#: Colours and cursor movement (ECMA-48, "control sequences"), which stand between a word and its boundary.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
#: Ranks, workers, levels and the like: `[rank0]:`, `(EngineCore_DP0 pid=6880)`, `[core.py:396]`.
_BRACKETS = re.compile(r"\[[^\]]*\]|\([^)]*\)|<[^>]*>")
#: Most words of prose before an exception's class where it is printed, as in `Training failed: torch.…`.
_MOST_WORDS = 2
#: Most places of one text that are looked at, and most of a line on either side of it, in characters: the daemon's
#: loop waits for this.
_MOST_PLACES = 64
_MOST_OF_A_LINE = 1024


def find(tail: bytes) -> Mapping[Symptom, Line]:
    """The last line for each symptom that the end of a log shows.

    A carriage return ends a line (progress bars); text of two bytes per character is read as if it had one.
    """
    text = tail.replace(b"\0", b"").decode("utf-8", "replace").replace("\r", "\n")
    if "\x1b[" in text:
        text = _ESCAPES.sub("", text)
    found: dict[Symptom, Line] = {}
    for symptom, literal, pattern in _RULES:
        line = _last(text, literal, pattern)
        if line is not None and (symptom not in found or line.place > found[symptom].place):
            found[symptom] = line
    return found


def _last(text: str, literal: str, pattern: re.Pattern[str] | None) -> Line | None:
    """The last line with the literal in it that matches the pattern."""
    place = len(text)
    for _ in range(_MOST_PLACES):
        place = text.rfind(literal, 0, place)
        if place < 0:
            return None
        begin = max(text.rfind("\n", 0, place) + 1, place - _MOST_OF_A_LINE)
        end = text.find("\n", place)
        line = text[begin : min(end if end >= 0 else len(text), place + _MOST_OF_A_LINE)]
        if pattern is None or _matches(pattern, line):
            return Line(line, place)
        place = begin
    return None


def _matches(pattern: re.Pattern[str], line: str) -> bool:
    if "raised" not in pattern.groupindex:
        return pattern.search(line) is not None
    return any(_is_prefix(line[: match.start("raised")]) for match in pattern.finditer(line))


def _is_prefix(text: str) -> bool:
    """Whether this is what stands before an exception: nothing, or ranks, times, levels, names and a word or two.

    Words in capitals are levels, and those with a digit or a stop in or behind them names, times and labels. A word
    of prose right before the class makes it part of a sentence.
    """
    words = _BRACKETS.sub(" ", text).split()
    prose = [word for word in words if word.isalpha() and not word.isupper()]
    return not words or (len(prose) <= _MOST_WORDS and words[-1] not in prose)
