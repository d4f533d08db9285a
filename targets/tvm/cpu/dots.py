"""What one step of a contraction multiplies: a float, or a 32-bit word of several 8-bit codes.

    dot = of_codes(machine)                      # the instruction for integer products
    acc = dot.add(acc, word, weights, lanes)     # acc[lane] += sum over taps of word[tap] * weights[lane][tap]

A word holds `taps` neighbouring input channels of one position; weights are packed alike, [lane][tap]. Sums are exact:
no instruction that saturates is used. Not here: the loop nest (contraction.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from graphopt.targets.tvm.cpu.loops import Expr, load, number
from graphopt.targets.tvm.machine import Isa, Machine

_SIGN = 0x80


@dataclass(frozen=True)
class Dot:
    """One kind of step.

    Attributes:
        taps: input channels per step.
        word: element type in which inputs are staged and broadcast; accumulators have it too.
        code: type of one input channel inside a word.
        weights: element type of packed weights.
        least: lanes of the narrowest vector that `add` takes.
        add: (accumulator, input word in all lanes, weights, lanes) to the new accumulator.
    """

    taps: int
    word: str
    code: str
    weights: str
    least: int
    add: Callable[[Expr, Expr, Expr, int], Expr]

    def shift(self, dtype: str) -> int:
        """What is added to codes of a type when they are put into words."""
        unsigned, wanted = dtype == "uint8", self.code == "uint8"
        return 0 if self.bits() > 8 or unsigned == wanted else (_SIGN if wanted else -_SIGN)

    def bits(self) -> int:
        return 32 // self.taps

    def reads_in_place(self) -> bool:
        """Whether words lie in memory as they are; otherwise inputs have to be staged."""
        return self.bits() == 8 or self.word == "float32"

    def words(self, buffer: Expr, indices: list[Expr], channel: Expr, lanes: int) -> Expr:
        """`lanes` words from the word `channel` on, of a buffer of codes; its last axis is a multiple of `taps`."""
        codes = load(buffer, *indices, channel * self.taps, lanes=lanes * self.taps)
        kind = f"int32x{lanes}" if lanes > 1 else "int32"
        if self.bits() > 8:
            wide = codes.astype(f"{self.code}x{lanes * self.taps}" if lanes * self.taps > 1 else self.code)
            return wide if self.taps == 1 else tirx.reinterpret(kind, wide)
        words = tirx.reinterpret(kind, codes)
        return words ^ number(_repeated(_SIGN, 8), "int32", lanes) if self.shift(str(buffer.ty.dtype)) else words

    def padding(self, zero: int) -> int:
        """The word whose channels all are `zero`, which is shifted already."""
        return _repeated(zero, self.bits())


def _repeated(code: int, bits: int) -> int:
    """A signed 32-bit word made of one code."""
    low = code & ((1 << bits) - 1)
    word = sum(low << at for at in range(0, 32, bits))
    return word - (1 << 32) if word >> 31 else word


def _fma(acc: Expr, word: Expr, weights: Expr, lanes: int) -> Expr:
    return acc + word * weights


def _vnni(acc: Expr, word: Expr, weights: Expr, lanes: int) -> Expr:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    codes = tirx.reinterpret(f"int8x{4 * lanes}", word)
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, codes, weights)


_MADD = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def _madd(acc: Expr, word: Expr, weights: Expr, lanes: int) -> Expr:
    codes = tirx.reinterpret(f"int16x{2 * lanes}", word)
    return acc + tirx.call_llvm_pure_intrin(f"int32x{lanes}", _MADD[lanes], codes, weights)


def _sdot(acc: Expr, word: Expr, weights: Expr, lanes: int) -> Expr:
    codes = tirx.reinterpret(f"int8x{4 * lanes}", word)
    return tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, codes, weights)


def _widened(acc: Expr, word: Expr, weights: Expr, lanes: int) -> Expr:
    return acc + word * weights.astype(f"int32x{lanes}" if lanes > 1 else "int32")


FLOAT = Dot(1, "float32", "float32", "float32", 1, _fma)
"""Fused multiply-add of single floats."""
_VNNI = Dot(4, "int32", "uint8", "int8", 4, _vnni)
_MADD_PAIRS = Dot(2, "int32", "int16", "int16", 4, _madd)
_SDOT = Dot(4, "int32", "int8", "int8", 4, _sdot)
_WIDENED = Dot(1, "int32", "int32", "int16", 1, _widened)


_OF_CODES: dict[Isa, Dot] = {
    "avx512vnni": _VNNI,
    "avx512vpopcntdq": _VNNI,
    "avx512": _MADD_PAIRS,
    "avx2": _MADD_PAIRS,
    "neon": _WIDENED,
    "neondot": _SDOT,
    "armv7": _WIDENED,
    "riscv64": _WIDENED,
}


def of_codes(machine: Machine) -> Dot:
    """The step for 8-bit codes: four products at once where the machine has an instruction for them."""
    return _OF_CODES[machine.isa]
