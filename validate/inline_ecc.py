"""What DRAM counters count where ECC bits lie among the data.

Devices with HBM keep ECC bits in memory of their own. In the GDDR of servers 2 bytes for 32 lie in
the same memory, and what a profiler counts as DRAM bytes holds them. The least that is moved, a
sector, has the bits of 16 sectors of data, but comes anew for each 256 bytes of neighbours, half of
them: whole rows move an eighth more, and a walk down a matrix that takes 64 bytes of each row half
as much again. Of what is written, L2 gathers whole rows.

Sources: NVIDIA, CUDA C++ Best Practices Guide, "Theoretical Bandwidth Calculation" (6.25% of the
capacity; the bits of each transaction are fetched; HBM2 has its own); IGX user guide, "DRAM-ECC"
(2 bytes for 32). tungsheng/cuda-kernel-lab, profiling/reports, an A10G (the eighth): a sum, an
RMSNorm and an addition of vectors count 1.11, 1.13 and 1.15 bytes for each that they read. That
each run of neighbours in a tile brings its bits anew is an assumption.
"""

from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Kernel, Load, Stream

SECTOR_BYTES, DATA_BYTES_A_SECTOR = 32, 256


def counted_dram_bytes(run: KernelRun, hw: HardwareProfile) -> tuple[int, int]:
    """(read, written) bytes of a kernel as a profiler counts them."""
    read, written = run.hbm_read_bytes, run.hbm_write_bytes
    if not hw.hbm.inline_ecc:
        return read, written
    ecc_of_writes = SECTOR_BYTES / DATA_BYTES_A_SECTOR
    return int(read * (1 + _ecc_of_reads(run.kernel))), int(written * (1 + ecc_of_writes))


def _ecc_of_reads(kernel: Kernel) -> float:
    """Bytes of ECC a byte read; tensors are taken to be read in proportion to their sizes."""
    loaded = [op.stream for loop in kernel.loops for op in loop.ops if isinstance(op, Load)]
    shares = {stream.tensor: _ecc_of(stream) for stream in loaded}
    ecc_bytes = sum(tensor.bytes * share for tensor, share in shares.items())
    return ecc_bytes / max(sum(tensor.bytes for tensor in shares), 1)


def _ecc_of(stream: Stream) -> float:
    """Bytes of ECC a byte of a tile: sectors of it that a run of neighbours has."""
    tensor, rows = stream.tensor, min(stream.tile_rows, stream.tensor.rows)
    row_bytes = min(stream.tile_cols, tensor.cols) * tensor.element_bytes
    run_bytes = row_bytes if stream.tile_cols < tensor.cols else rows * row_bytes
    return SECTOR_BYTES * -(-run_bytes // DATA_BYTES_A_SECTOR) / run_bytes
