"""What a step does beside its matrix products, compiled on the user's machine: `fused.c`.
Products of linear layers, too: `products`.

    fused = compile_fused(folder)          # None where there is no compiler, or it does not serve
    fused.norm(rows, weight, least)
    fused.attend(group, layer, query, key, value, scoring, places, lengths)

By torch's operations these parts take a third of a step: each of them reads and writes all rows,
and wakes threads for less work than the waking takes. Here each is one pass. Float32 on a CPU, by a
C compiler in a second or two, once: the library stays in the folder. It is compiled for this CPU,
so its name stands for the CPU, the compiler and the source. Its threads are those of torch's
OpenMP, whose functions it finds in the process.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import SubprocessError

import torch
from torch import Tensor
from torch.nn import functional

from specrej.attention.groups import Group, Scoring
from specrej.attention.layout import KvLayout
from specrej.attention.products import Products

_SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("fused.c", "products.c", "registers.c")
)
_FLAGS = (
    *("-std=gnu11", "-O3", "-fPIC", "-fopenmp"),
    # Sums in any order, which makes vectors of them. NaN and infinity stay what they are.
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
_MOST_NUMBERS, _MOST_SHARED, _WIDE = 4096, 64, 16
"""Of the queries of one key head, as in the source; and what the size of a head must be a multiple
of, that of the widest registers there."""
_ALL = 1 << 40
"""A window that hides nothing."""
_MOST_SECONDS = 60
"""That a compiler may take."""
_LOG = logging.getLogger("specrej")


class _Part(ctypes.Structure):
    _fields_ = (
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("length", ctypes.c_int64),
        ("key_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
    )


_P, _I, _F, _N = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_SIGNATURES = {
    "add_norm": (_P, _P, _P, _F, _P, _I, _I, _N),
    "turn": (_P, _P, _I, _I, _I, _I, _N),
    "gate": (_P, _P, _I, _I, _N),
    "log_sum_exp": (_P, _P, _I, _I, _N),
    "largest": (_P, _I, _I, _I, _I, _P, _P, _P, _N),
    "attend": (
        *(*(_P,) * 3, *(_I,) * 3, _P, _I, *(_P,) * 2, _I, _I),
        *(_P, _P, _I, _P, *(_I,) * 4, _F, _N),
    ),
}


class Fused:
    """The compiled functions. Tensors are float32, on the CPU and contiguous, unless it is said.

    Attributes:
        name: stands for the CPU, the compiler and the sources, and for what came out.
        products: those of linear layers; None where this CPU has no registers for them.

    Raises:
        OSError: the library cannot be loaded.
        AttributeError: a function is missing.
    """

    def __init__(self, library: Path) -> None:
        functions, self.name = ctypes.CDLL(str(library)), library.stem
        for name, types in _SIGNATURES.items():
            function = getattr(functions, name)
            function.argtypes, function.restype = types, None
        self.products = Products.of(functions)
        self._add_norm, self._turn, self._gate, self._log_sum_exp, self._largest, self._attend = (
            getattr(functions, name) for name in _SIGNATURES
        )

    def norm(self, rows: Tensor, weight: Tensor, least: float, added: Tensor | None) -> Tensor:
        """Rows `[..., dim]`, to which `added` is added in place first, over the hypotenuse of
        their length and `least`, times the weight `[dim]`.
        """
        out, dim = torch.empty_like(rows), rows.shape[-1]
        more = None if added is None else added.data_ptr()
        self._add_norm(
            *(rows.data_ptr(), more, weight.data_ptr(), least, out.data_ptr()),
            *(rows.numel() // dim, dim, torch.get_num_threads()),
        )
        return out

    def turn(self, heads: Tensor, num_turned: int, turns: Tensor) -> None:
        """Multiply neighbouring pairs of the first heads, `[..., heads, dim]`, by complex numbers
        `[..., dim / 2]`, in place.
        """
        *_, num_heads, dim = heads.shape
        self._turn(
            *(heads.data_ptr(), turns.data_ptr(), heads.numel() // (num_heads * dim)),
            *(num_heads, num_turned, dim, torch.get_num_threads()),
        )

    def gate(self, gate_up: Tensor) -> Tensor:
        """`[..., inner]`: silu of the first half of the last dimension times its second half."""
        inner = gate_up.shape[-1] // 2
        out = gate_up.new_empty(*gate_up.shape[:-1], inner)
        rows = out.numel() // inner
        self._gate(gate_up.data_ptr(), out.data_ptr(), rows, inner, torch.get_num_threads())
        return out

    def log_sum_exp(self, rows: Tensor) -> Tensor:
        """`[rows, 1]` of rows `[rows, width]`; not finite where NaN or infinity is in the row, or
        minus infinity alone.
        """
        out, (num, width) = rows.new_empty(len(rows), 1), rows.shape
        self._log_sum_exp(rows.data_ptr(), out.data_ptr(), num, width, torch.get_num_threads())
        return out

    def largest(self, rows: Tensor, k: int, piece: int) -> tuple[Tensor, Tensor]:
        """The k largest numbers of each row `[rows, width]`, in descending order, and where they
        are; of equals the first. `piece` divides the width, and there are at least k pieces.
        Minus infinity, at 0, where there are not k numbers, but NaN.
        """
        num, width = rows.shape
        values, maxima = rows.new_empty(num, k), rows.new_empty(num, width // piece)
        places = torch.empty(num, k, dtype=torch.int64)
        self._largest(
            *(rows.data_ptr(), num, width, piece, k),
            *(values.data_ptr(), places.data_ptr(), maxima.data_ptr(), torch.get_num_threads()),
        )
        return values, places

    def can_attend(self, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> bool:
        """Whether `attend` serves for these."""
        shared, dim = query.shape[1] // key.shape[1], query.shape[3]
        return (
            query.dtype == torch.float32
            and query.device.type == "cpu"
            and scoring.softcap is None
            and value.shape[3] == dim
            and dim % _WIDE == 0
            and shared <= _MOST_SHARED
            and shared * dim <= _MOST_NUMBERS
            and query.stride()[1::2] == key.stride()[1::2] == value.stride()[1::2] == (dim, 1)
        )

    def attend(
        self,
        group: Group,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scoring: Scoring,
        places: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """Store the newest key and value of some rows of a group, and attend to all its positions;
        `[rows, 1, heads, dim]`.

        Args:
            group: with room for them.
            layer: whose keys and values.
            query: `[rows, heads, 1, dim]`; the heads of a row next to each other.
            key: `[rows, kv_heads, 1, dim]`, as value.
            value: see key.
            scoring: without a softcap.
            places: `[rows]` int64, of the rows in the group's block.
            lengths: `[rows]` int64, how many tokens each of them has there.
        """
        parts = [
            _Part(
                *(keys.data_ptr(), values.data_ptr(), keys.shape[1]),
                *(keys.stride(0), values.stride(0)),
            )
            for keys, values in group.prompt_kv(layer)
        ]
        keys, values = group.keys[layer], group.values[layer]
        _, kv_heads, key_slots, dim = keys.shape
        rows, heads = query.shape[:2]
        out = query.new_empty(rows, 1, heads, dim)
        strides = query.stride(0), key.stride(0), value.stride(0)
        window = _ALL if scoring.window is None else scoring.window
        self._attend(
            *(query.data_ptr(), key.data_ptr(), value.data_ptr(), *strides),
            *((_Part * len(parts))(*parts), len(parts)),
            *(keys.data_ptr(), values.data_ptr(), key_slots, values.shape[2]),
            *(places.data_ptr(), lengths.data_ptr(), window),
            *(out.data_ptr(), rows, kv_heads, heads // kv_heads, dim),
            *(scoring.scaling, torch.get_num_threads()),
        )
        return out


def compile_fused(folder: Path) -> Fused | None:
    """The compiled functions, from the folder or put there; None where the environment says
    `SPECREJ_FUSED=off`, nothing compiles them, or they do not compute what torch does.
    """
    if os.environ.get("SPECREJ_FUSED") == "off":
        return None
    try:
        # It may be more than a name: "ccache gcc".
        compiler, *arguments = shlex.split(os.environ.get("CC", "")) or ["cc"]
        found = shutil.which(compiler)
        return None if found is None else _sound(Fused(_library([found, *arguments], folder)))
    except (OSError, ValueError, SubprocessError, AttributeError) as error:
        _LOG.info("the parts between matrix products are left to torch: %s", error)
        return None


def _library(compiler: Sequence[str], folder: Path) -> Path:
    """From the folder, or compiled into it. Its name ends with a digest of what is in it: whoever
    loads a library that was cut short is killed.
    """
    cpu = processor()
    # What would be compiled for a CPU that has no name could be loaded on another one.
    flags = [*_FLAGS, "-march=native"] if cpu else [*_FLAGS]
    begins = f"fused-{_key([*compiler, *flags], cpu)}"
    for found in folder.glob(f"{begins}-*.so"):
        if found.name == f"{begins}-{_digest(found.read_bytes())}.so":
            return found
        found.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made_in:
        # In two steps: one that is linked with OpenMP may bring a second one beside torch's.
        for step in (
            [*flags, "-c", *map(str, _SOURCES)],
            ["-shared", *(f"{source.stem}.o" for source in _SOURCES), "-o", "fused.so", "-lm"],
        ):
            _said([*compiler, *step], made_in)
        made = Path(made_in, "fused.so")
        return made.replace(folder / f"{begins}-{_digest(made.read_bytes())}.so")


def _key(compile_with: Sequence[str], cpu: str) -> str:
    """What a library was compiled from, by what and for what."""
    version = _said([*compile_with, "--version"])
    call = "\0".join(compile_with).encode()
    sources = [source.read_bytes() for source in _SOURCES]
    return _digest(b"\n".join([*sources, version, call, cpu.encode()]))


def _said(run: Sequence[str], folder: str | None = None) -> bytes:
    """What a command printed. Into a file: of a pipe, who stops waiting for the command would wait
    for what it had started.

    Raises:
        SubprocessError: it fails, or takes too long.
    """
    with tempfile.TemporaryFile() as printed:
        subprocess.run(
            run,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            check=True,
            timeout=_MOST_SECONDS,
        )
        printed.seek(0)
        return printed.read()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def processor() -> str:
    """The model and the instructions of this machine's CPU, as Linux names them; "" elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    kinds = ("model name", "flags", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(kinds)))


def _sound(fused: Fused) -> Fused | None:
    """Itself where it computes what torch does on a few rows; a model's check sees the rest."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rows, added, weight = numbers(3, 8), numbers(3, 8), numbers(8)
    expected = functional.rms_norm(rows + added, (8,), weight, eps=0.5)
    normed = fused.norm(rows.clone(), weight * 8**0.5, 2.0, added)
    gated = functional.silu(rows[:, :4]) * rows[:, 4:]
    heads, turns = numbers(2, 3, 8), torch.view_as_complex(numbers(2, 1, 4, 2))
    turned = torch.view_as_real(torch.view_as_complex(heads.view(2, 3, 4, 2)) * turns).flatten(2)
    turned[:, 2] = heads[:, 2]
    fused.turn(heads, 2, turns)
    pairs = [(normed, expected), (fused.gate(rows), gated), (heads, turned)]
    pairs.append((fused.log_sum_exp(rows), rows.logsumexp(-1, keepdim=True)))
    pairs += zip(fused.largest(rows, 3, 2), torch.topk(rows, 3), strict=True)
    # Some sizes of a head have loops of their own, by the registers that the CPU has, and for each
    # number of queries that they hold.
    sizes = [(2, 48), (3, 16), (3, 32), (5, 64), (6, 64), (7, 64), (3, 128), (1, 256)]
    pairs += [_attended(fused, *size, numbers) for size in sizes]
    is_sound = all(torch.allclose(*pair, atol=1e-5) for pair in pairs)
    return fused if is_sound else None


def _attended(
    fused: Fused, shared: int, dim: int, numbers: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """What two rows see of a prompt and their own tokens, with `shared` heads a key head: as
    compiled, and by torch.
    """
    prompt, own = 3, 2
    keys, values = numbers(2, 2, 2, prompt + own + 1, dim)
    group = Group([0] * prompt, 0, KvLayout(0, 0, 1), own + 1)
    for kv in (keys, values):
        kv[1, :, :prompt] = kv[0, :, :prompt]
    group.prompt_keys, group.prompt_values = ([kv[0, :, :prompt].clone()] for kv in (keys, values))
    group.keys, group.values = ([kv[:, :, prompt:].clone()] for kv in (keys, values))
    query = numbers(2, 2 * shared, 1, dim)
    key, value = (kv[:, :, -1:].clone() for kv in (keys, values))
    for kv in (*group.keys, *group.values):
        kv[:, :, own] = 0  # the newest are to be stored
    scoring, standing = Scoring(dim**-0.5, None, None), (torch.arange(2), torch.full((2,), own))
    seen = fused.attend(group, 0, query, key, value, scoring, *standing)
    alike = (kv.repeat_interleave(shared, 1) for kv in (keys, values))
    return seen, functional.scaled_dot_product_attention(query, *alike).transpose(1, 2)
