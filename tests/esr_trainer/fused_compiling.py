"""Compile the kernels for a GPU of some compute capability, which need not be here; print their shared memory."""

import json
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from esr_trainer import fused_kernels
from esr_trainer.fused_catalogue import WARPS, Tiling

POINTERS = {"seed": "*i64", "tiles": "*i64", "pairs": "*i32"}
NUMBERS = ("num_contexts", "num_items", "num_tiles", "in_chunk")


def shared_memory(name: str, capability: int, num_experts: int, dimension: int) -> int:
    """Bytes of a program."""
    kernel = getattr(fused_kernels, name)
    tiling = Tiling().of_gradient(dimension) if name.startswith("pull") else Tiling()
    sizes = {"M": num_experts, "D": dimension, "R": num_experts, "ROWS": tiling.rows, "TILE": tiling.tile}
    sizes |= {"PART": tiling.part, "FEW": tiling.few, "WIDE": max(16, 1 << (dimension - 1).bit_length()), "NOISY": True}
    types = {
        name: "constexpr" if name in sizes else "i32" if name in NUMBERS else POINTERS.get(name, "*fp32")
        for name in kernel.arg_names
    }
    constants = {name: size for name, size in sizes.items() if name in types}
    aligned = {(place,): [["tt.divisibility", 16]] for place, of in enumerate(types.values()) if of.startswith("*")}
    source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
    done = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
    return int(done.metadata.shared)


if __name__ == "__main__":
    names = ("scan", "look", "race", "pull_queries", "pull_items")
    print(json.dumps({name: shared_memory(name, *map(int, sys.argv[1:])) for name in names}))
