"""Times of work on a GPU, by CUDA events: warm, from a cold L2, and replayed as a graph."""

from collections.abc import Callable

import torch

Work = Callable[[], object]
# A buffer of so many L2s is read to evict all that was in it; a few would do, more keep the device
# busy while the host gets ahead, so that no event waits for a launch.
FLUSH_L2S = 24
GRAPH_REPLAYS = 10


class CudaClock:
    """Times on the current CUDA device, in seconds, one for each repetition."""

    device = "cuda"

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._others = torch.zeros(FLUSH_L2S * l2_bytes // 4, device=self.device)

    def flush_l2(self) -> None:
        """Fill the L2 with clean lines of other data; a write would leave it dirty ones."""
        self._others.sum()

    def time_s(self, work: Work, repeats: int = 20) -> list[float]:
        """Back to back, so that each finds what the one before left in L2."""
        return self._time_s(work, repeats, lambda: None)

    def cold_time_s(self, work: Work, repeats: int = 20) -> list[float]:
        """Each from an L2 that holds nothing of it."""
        return self._time_s(work, repeats, self.flush_l2)

    def graph_time_s(self, work: Work, launches: int = 20) -> list[float]:
        """Seconds of one of `launches` back to back, replayed as a CUDA graph: no host between."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(launches):
                work()
        graph.replay()
        return [t / launches for t in self._time_s(graph.replay, GRAPH_REPLAYS, lambda: None)]

    def _time_s(self, work: Work, repeats: int, before: Work) -> list[float]:
        events = []
        for _ in range(repeats):
            before()
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]
