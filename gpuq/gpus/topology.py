"""How far GPUs are apart, as NVML tells: by the NVLinks between two of them, else by where they are on PCI Express.

The calls are those of nvml.h, "NvLink Methods" and "Device Queries" in NVIDIA's NVML API Reference. Each may not be
there, be unsupported or fail: then it has told nothing. They are made in a process of their own, see `distances.py`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pynvml

from gpuq.gpus.nvml import Gate
from gpuq.model import FARTHEST, ON_ONE_BOARD

#: Domain, bus and device of a GPU on PCI Express.
_Address = tuple[int, int, int]
#: The other end of a link: a GPU's address, or this.
_SWITCH = "a switch"


@dataclass(frozen=True, slots=True)
class _Gpu:
    uuid: str
    handle: Any
    address: _Address | None
    #: links that are up, by what is at their other end
    links: Counter[_Address | str]


def read_distances(gate: Gate, uuids: Iterable[str]) -> dict[tuple[str, str], int]:
    """The distance of each pair of these GPUs of which something is told, as `Readings.distances` has it."""
    if gate.init().trouble is not None:
        return {}
    gpus = [gpu for uuid in sorted(uuids) if (gpu := _gpu(gate, uuid)) is not None]
    told = ((one.uuid, other.uuid, _distance(gate, one, other)) for one, other in itertools.combinations(gpus, 2))
    return {(one, other): distance for one, other, distance in told if distance is not None}


def _gpu(gate: Gate, uuid: str) -> _Gpu | None:
    handle = gate.call("nvmlDeviceGetHandleByUUID", uuid)
    if handle.trouble is not None:
        return None
    return _Gpu(uuid, handle.value, _address(gate, "nvmlDeviceGetPciInfo", handle.value), _links(gate, handle.value))


def _address(gate: Gate, name: str, *arguments: Any) -> _Address | None:
    """What an nvmlPciInfo_t says."""
    told = gate.call(name, *arguments)
    return None if told.trouble else (told.value.domain, told.value.bus, told.value.device)


def _links(gate: Gate, handle: Any) -> Counter[_Address | str]:
    """The links of a GPU that are up. One that is not used may be unsupported, and the one after it in use."""
    found: Counter[_Address | str] = Counter()
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = gate.call("nvmlDeviceGetNvLinkState", handle, link)
        if state.trouble or state.value != pynvml.NVML_FEATURE_ENABLED:
            continue
        kind = gate.call("nvmlDeviceGetNvLinkRemoteDeviceType", handle, link)
        if kind.trouble is None and kind.value == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            found[_SWITCH] += 1
        elif (end := _address(gate, "nvmlDeviceGetNvLinkRemotePciInfo", handle, link)) is not None:
            found[end] += 1
    return found


def _distance(gate: Gate, one: _Gpu, other: _Gpu) -> int | None:
    links = _between(gate, one, other)
    if links:
        most: int = pynvml.NVML_NVLINK_MAX_LINKS
        return ON_ONE_BOARD - min(links, most)
    level = gate.call("nvmlDeviceGetTopologyCommonAncestor", one.handle, other.handle)
    if level.trouble or level.value > FARTHEST - ON_ONE_BOARD:
        return None
    return ON_ONE_BOARD + int(level.value)


def _between(gate: Gate, one: _Gpu, other: _Gpu) -> int:
    """How many links join two GPUs: directly, or through switches, which join all that have links to them.

    The driver says whether two GPUs reach each other over NVLink (nvmlDeviceGetP2PStatus); not, say, while the
    switches have no fabric manager. Where it says only that, one link counts.
    """
    direct = max(_links_to(one, other), _links_to(other, one))
    if direct:
        return direct
    switched = min(one.links[_SWITCH], other.links[_SWITCH])
    reach = gate.call("nvmlDeviceGetP2PStatus", one.handle, other.handle, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    if reach.trouble:
        return switched
    return max(switched, 1) if reach.value == pynvml.NVML_P2P_STATUS_OK else 0


def _links_to(one: _Gpu, other: _Gpu) -> int:
    return 0 if other.address is None else one.links[other.address]
