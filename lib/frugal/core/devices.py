"""Devices: what a machine can compute and move per second, each number with its source.

Peak numbers of data sheets, so times from them are lower bounds. `flops` is dense (no structured sparsity) unless
`sparse_flops` says otherwise; a multiply-add counts as 2. Data sheets that print only the sparse number state that
the dense one is half of it.
"""
from collections.abc import Mapping
from dataclasses import dataclass, field

from .measure import GIB, hardware, matmul_flops, read_bandwidth

GB, TFLOPS = 1e9, 1e12
Number = int | float


@dataclass(frozen=True)
class Device:
    """One device.

    flops: dense FLOP/s by number format ("fp32", "fp16" = 16-bit tensor units with fp32 sums where there are any,
    "int8" in op/s). sparse_flops: the same with 2:4 structured sparsity. bandwidth: bytes/s of its own memory.
    memory_bytes: its size. link_bandwidth: bytes/s to the host, one direction. sources: where each number stands.
    """

    name: str
    flops: Mapping[str, Number]
    bandwidth: Number
    memory_bytes: Number
    link_bandwidth: Number | None
    sources: Mapping[str, str]
    sparse_flops: Mapping[str, Number] = field(default_factory=dict)

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s in this number format. ValueError lists the formats that are known."""
        if dtype not in self.flops:
            raise ValueError(f"{self.name} has no {dtype!r} number; known: {', '.join(self.flops)}")
        return self.flops[dtype]

    @property
    def balance(self) -> Mapping[str, Number]:
        """FLOPs per byte at which computing and reading take equally long, by number format."""
        return {dtype: flops / self.bandwidth for dtype, flops in self.flops.items()}


PCIE = {3: 15.75 * GB, 4: 31.5 * GB, 5: 63.0 * GB}
_PCIE_SOURCE = "PCI Express base specification: 8, 16, 32 GT/s a lane with 128b/130b coding, 16 lanes, one direction"


def _gpu(name: str, sheet: str, fp32: Number, fp16: Number | None, bandwidth: Number, memory_gib: Number, pcie: int,
         int8: Number | None = None, sparse_fp16: Number | None = None, note: str = "") -> Device:
    """TFLOPS and GB/s as printed; fp16 and int8 dense."""
    flops = {"fp32": fp32 * TFLOPS}
    sources = {"fp32": f"{sheet}, dense", "bandwidth": sheet, "memory_bytes": f"{sheet}, read as GiB",
               "link_bandwidth": _PCIE_SOURCE}
    sparse = {}
    if fp16 is not None:
        flops["fp16"] = fp16 * TFLOPS
        sources["fp16"] = f"{sheet}, dense{note}"
    if int8 is not None:
        flops["int8"] = int8 * TFLOPS
        sources["int8"] = f"{sheet}, dense{note}"
    if sparse_fp16 is not None:
        sparse["fp16"] = sparse_fp16 * TFLOPS
        sources["sparse fp16"] = f"{sheet}, with 2:4 sparsity"
    return Device(name, flops, bandwidth * GB, memory_gib * GIB, PCIE[pcie], sources, sparse)


_HALF = "; the sheet prints the number with sparsity and says that without it is half"
_MEASURED = ("measured with frugal.core.measure on a quiet virtual machine with two cores of an Intel Xeon: "
             "plain sum over a large buffer")

DEVICES: dict[str, Device] = {device.name: device for device in (
    _gpu("A100-40GB", "NVIDIA A100 Tensor Core GPU data sheet (SXM4, 40 GB)", 19.5, 312, 1555, 40, 4, 624, 624),
    _gpu("A100-80GB", "NVIDIA A100 Tensor Core GPU data sheet (SXM4, 80 GB)", 19.5, 312, 2039, 80, 4, 624, 624),
    _gpu("H100-SXM", "NVIDIA H100 Tensor Core GPU data sheet (SXM5)", 67, 989.5, 3350, 80, 5, 1979, 1979, _HALF),
    _gpu("H100-PCIe", "NVIDIA H100 Tensor Core GPU data sheet (PCIe)", 51, 756.5, 2000, 80, 5, 1513, 1513, _HALF),
    _gpu("H200-SXM", "NVIDIA H200 Tensor Core GPU data sheet (SXM)", 67, 989.5, 4800, 141, 5, 1979, 1979, _HALF),
    _gpu("V100-SXM2", "NVIDIA V100 Tensor Core GPU data sheet (SXM2, 32 GB)", 15.7, 125, 900, 32, 3),
    _gpu("P40", "NVIDIA Tesla P40 GPU accelerator data sheet", 12, None, 346, 24, 3, 47),
    _gpu("T4", "NVIDIA T4 Tensor Core GPU data sheet", 8.1, 65, 320, 16, 3, 130),
    _gpu("A10", "NVIDIA A10 Tensor Core GPU data sheet", 31.2, 125, 600, 24, 4, 250, 250),
    _gpu("L4", "NVIDIA L4 Tensor Core GPU data sheet", 30.3, 121, 300, 24, 4, 242.5, 242, _HALF),
    _gpu("RTX-3090", "NVIDIA Ampere GA102 GPU architecture white paper, appendix A", 35.6, 71, 936, 24, 4, 284, 142,
         "; fp32 sums"),
    _gpu("RTX-4090", "NVIDIA Ada GPU architecture white paper, appendix A", 82.6, 165.2, 1008, 24, 4, 660.6, 330.4,
         "; fp32 sums"),
    Device("two-core-cpu", {"fp32": 150e9}, 60 * GB, 8 * GIB, None, {
        "fp32": "measured: what SmolLM2 prefill reaches, 570 tokens/s x 2 x 134.5 M parameters, so below the peak",
        "bandwidth": _MEASURED, "memory_bytes": "the smallest machine the notebooks are made for"}),
)}


def device(name: str) -> Device:
    """The device of this name. ValueError lists the names."""
    if name not in DEVICES:
        raise ValueError(f"unknown device {name!r}; there are: {', '.join(DEVICES)}")
    return DEVICES[name]


def this_cpu(threads: int | None = None) -> Device:
    """This machine, measured now (about a second): read bandwidth and fp32 matrix products. Never cached."""
    import psutil
    source = f"measured now with frugal.core.measure: {hardware()}"
    return Device("this-cpu", {"fp32": matmul_flops(threads)}, read_bandwidth(threads),
                  float(psutil.virtual_memory().total), None,
                  {"fp32": source, "bandwidth": source, "memory_bytes": source})
