"""Crops → class probabilities and latents, by ONNX Runtime on CUDA where it works, else on the CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from labref.bundles.bundle import Bundle, Golden, Manifest, Precision
from labref.bundles.graph import check_graph
from labref.cpus import usable_cpus
from labref.errors import BundleError
from labref.heap import give_back

__all__ = [
    "Described",
    "Device",
    "Embedder",
    "Embeddings",
    "cuda_problem",
    "describe_each",
    "expected_provider",
    "missing_library",
]

Device = Literal["auto", "cpu", "cuda"]
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_BATCH = {_CPU: 16, _CUDA: 128}
_REDUCED: dict[str, Precision] = {_CPU: "int8", _CUDA: "float16"}
_ENCODER = "encoder.onnx"
_CUDA_DLLS: Final = ("cudart64_12.dll", "cublasLt64_12.dll", "cublas64_12.dll", "cufft64_11.dll", "cudnn64_9.dll")
_QUIET = 4  # ONNX Runtime's severity "fatal": what matters is said once, in labref's words


@dataclass(frozen=True)
class Embeddings:
    """probabilities : float32[n, c], per class of the bundle.  latents : float32[n, L], means of the VAE's encoder."""

    probabilities: NDArray[np.float32]
    latents: NDArray[np.float32]


_MOST_PROBABLE: Final = 0.1
"""Largest difference of a probability from the golden one, whatever the tolerance of a bundle with large latents."""
_NOT_FINITE: Final = "the networks give no finite numbers for it; verify the bundle"


class Described(NamedTuple):
    """One cell by the networks. latent : float32[L].  probabilities : float32[c].  label, probability : the most
    probable class."""

    latent: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    label: str
    probability: float


_FEW: Final = 4
"""A batch of so much fewer crops than the largest before it lets go of the memory of that."""


class Embedder:
    """A bundle's two graphs, opened on one device. Safe to use from several threads.

    bundle : what is run.  provider : ONNX Runtime's name of the execution provider in use.  precision : of the trunk in
    use; a reduced one is in the bundle only if its references are those of the full one, also beside cells that the
    full one embedded (measured at export, in the manifest), so both fill the same latent space.
    provider_line : one line for people, saying which device is used and why.
    fallback : why the GPU of this computer is not used, where it was to be; None where there is none, or it is used.
    batch_size : crops that go through the graphs at once; memory is bounded by it, whatever `embed` is given.
    """

    def __init__(
        self,
        bundle: Bundle,
        trunk: Any,
        encoder: Any,
        provider: str,
        provider_line: str,
        precision: Precision = "full",
        *,
        fallback: str | None = None,
    ) -> None:
        self.bundle = bundle
        self.precision = precision
        self.provider = provider
        self.provider_line = provider_line
        self.fallback = fallback
        self.batch_size = _BATCH[provider]
        self._memory = "cpu" if provider == _CPU else "cuda"  # where the trunk's features are kept
        self._trunk = trunk
        self._encoder = encoder
        self._room = 0  # crops for which ONNX Runtime holds memory: those of its largest batch
        self._lets_go = True

    @staticmethod
    def open(
        bundle: Bundle,
        *,
        device: Device = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        precision: Literal["auto"] | Precision = "auto",
    ) -> Embedder:
        """Open `bundle` on `device`; `threads` CPU threads (default: every one that this process may use), `batch_size`
        crops at once (default: 16 on the CPU, 128 on a GPU).

        "auto" takes CUDA where a driver, a GPU and the CUDA libraries are found, else the CPU. "cuda" insists on it.
        precision : "auto" takes the bundle's trunk of reduced precision for the device, where it has one and this
        computer gives its golden outputs; "full" never does; "float16" and "int8" take it where it is the device's,
        without asking for these.
        Raises `BundleError` where the graphs cannot be run, or CUDA was insisted on and is not to be had.
        """
        onnxruntime.set_default_logger_severity(_QUIET)
        opened = _open(bundle, device, threads or usable_cpus(), precision)
        opened.batch_size = batch_size or opened.batch_size
        return opened

    def embed(self, crops: NDArray[np.uint8]) -> Embeddings:
        """Embed crops uint8[n, 256, 256, 3], any n, in batches of `batch_size`."""
        if crops.ndim != 4 or crops.shape[1:] != (256, 256, 3) or crops.dtype != np.uint8:
            raise ValueError(f"crops must be uint8[n, 256, 256, 3], not {crops.dtype}{list(crops.shape)}")
        manifest = self.bundle.manifest
        probabilities = np.empty((len(crops), len(manifest.labels)), dtype=np.float32)
        latents = np.empty((len(crops), manifest.latent_size), dtype=np.float32)
        for start in range(0, len(crops), self.batch_size):
            part = slice(start, min(start + self.batch_size, len(crops)))
            batch = np.ascontiguousarray(crops[part])
            said, latent = self._run(batch)
            # assigned as it is, one number would fill a row
            for name, found, room in (("probabilities", said, probabilities), ("latent", latent, latents)):
                if found.shape != (len(batch), room.shape[1]):
                    raise BundleError(
                        f"bundle {self.bundle.short}: {name} of {len(batch)} crops have the shape {list(found.shape)}, its "
                        f"manifest says {[len(batch), room.shape[1]]}"
                    )
            probabilities[part], latents[part] = said, latent
        return Embeddings(probabilities, latents)

    def _run(self, batch: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities and latents of one batch. Features stay where the trunk put them: on a GPU, in its memory."""
        if self.provider == _CPU:
            said, features = self._seen(batch)
            (latent,) = self._encoder.run(["latent"], {"features": features})
            return said, latent
        first, second = self._trunk.io_binding(), self._encoder.io_binding()
        first.bind_cpu_input("crops", batch)
        first.bind_output("probabilities", "cpu")
        first.bind_output("features", self._memory)
        self._trunk.run_with_iobinding(first)
        said, features = first.get_outputs()
        second.bind_ortvalue_input("features", features)
        second.bind_output("latent", "cpu")
        self._encoder.run_with_iobinding(second)
        return said.numpy(), second.get_outputs()[0].numpy()

    def _seen(self, batch: NDArray[np.uint8]) -> Any:
        """What the trunk makes of a batch on the CPU. ONNX Runtime keeps the memory of its largest batch, 150 MB: after
        many cells at once the next few let it go."""
        outputs, crops = ["probabilities", "features"], len(batch)
        held, self._room = self._room, max(self._room, crops)
        if self._lets_go and crops * _FEW <= held:
            options = onnxruntime.RunOptions()
            options.log_severity_level = _QUIET
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            try:
                found = self._trunk.run(outputs, {"crops": batch}, options)
                self._room = crops
                return found
            except Exception:  # some builds of ONNX Runtime know no such memory; else the next line fails as well
                found = self._trunk.run(outputs, {"crops": batch})
                self._lets_go = False
                return found
        found = self._trunk.run(outputs, {"crops": batch})
        self._room = max(self._room, crops)  # once more: a few of another thread may have let go meanwhile
        return found

    @property
    def golden_tolerance(self) -> float:
        """Largest difference from the golden outputs that the trunk in use may show."""
        manifest = self.bundle.manifest
        trunk = manifest.trunk(self.precision)
        return manifest.golden_tolerance if trunk is None else trunk.golden_tolerance

    def describe(self, crops: Sequence[NDArray[np.uint8]]) -> list[Described | None]:
        """What the networks say of each crop uint8[256, 256, 3], in one pass; None where a number of it is not finite.

        Empty for no crops.
        """
        if not crops:
            return []
        made = self.embed(np.stack(crops))
        finite = np.isfinite(np.concatenate([made.latents, made.probabilities], axis=1)).all(axis=1)
        labels, best = self.bundle.manifest.labels, made.probabilities.argmax(axis=1)
        return [
            Described(latent, probabilities, labels[at], float(probabilities[at])) if usable else None
            for latent, probabilities, at, usable in zip(
                made.latents, made.probabilities, best.tolist(), finite.tolist(), strict=True
            )
        ]

    def golden_difference(self) -> float:
        """Largest absolute difference between what the golden crops give here and what they gave at export.

        Raises `BundleError` where it is above the manifest's `golden_tolerance`: this computer must not be trusted with
        it.
        """
        golden = self.bundle.golden(self.precision)
        return self.golden_outputs(golden, golden.crops[:0])[0]

    def golden_sample(self, count: int = 2) -> float:
        """`golden_difference` of `count` of the golden crops, others each time: for a start that must take no second.

        Raises `BundleError` as that does.
        """
        golden = self.bundle.golden(self.precision)
        total = len(golden.crops)
        chosen = np.sort(np.random.default_rng().choice(total, min(count, total), replace=False))
        some = Golden(golden.crops[chosen], golden.probabilities[chosen], golden.latents[chosen])
        return self.golden_outputs(some, golden.crops[:0])[0]

    def golden_outputs(self, golden: Golden, more: NDArray[np.uint8]) -> tuple[float, Embeddings]:
        """`golden_difference`, and what the crops `more`, uint8[n, 256, 256, 3], give in the same batches."""
        count = len(golden.crops)
        try:
            made = self.embed(np.concatenate([golden.crops, more]))
        except BundleError:
            raise
        except Exception as error:  # onnxruntime raises its own types, and RuntimeError
            raise BundleError(f"bundle {self.bundle.title} cannot be run: {_first_line(error)}") from None
        # one that is not a number stays one in numpy's maximum, and is below no tolerance
        probabilities = float(np.abs(made.probabilities[:count] - golden.probabilities).max())
        latents = float(np.abs(made.latents[:count] - golden.latents).max())
        tolerance = self.golden_tolerance
        for difference, most in ((latents, tolerance), (probabilities, min(tolerance, _MOST_PROBABLE))):
            if not difference <= most:
                raise BundleError(
                    f"bundle {self.bundle.title} does not give its golden outputs on this computer: they differ by "
                    f'{difference:.3g}, allowed is {most:.3g} ({self.provider_line}). Set device = "cpu", or report this.'
                )
        return max(latents, probabilities), Embeddings(made.probabilities[count:], made.latents[count:])

    def tell_of_refused(self) -> None:
        """Say in `provider_line` that the full trunk is used as that of reduced precision does not run rightly here."""
        wanted = _REDUCED[self.provider]
        if self.precision == "full" and self.bundle.manifest.trunk(wanted) is not None:
            self.provider_line += f"; the {wanted} trunk does not give its golden outputs here, so the full one is used"

    def close(self) -> None:
        """Free both graphs."""
        self._trunk = self._encoder = None
        give_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def describe_each(embedder: Embedder, crops: Sequence[NDArray[np.uint8]]) -> list[Described | str]:
    """What the networks say of each crop uint8[256, 256, 3], or why they say nothing of it.

    All go through them in one pass. Where that fails, or a number is not finite, each such crop is tried by itself, so
    that one crop costs no other its place: ONNX Runtime raises many errors, and a trunk of reduced precision scales a
    whole batch by its largest number. Raises `BundleError` where no crop can be run, and the golden ones cannot either:
    it is not the crops that are at fault.
    """
    failed = False
    try:
        together = embedder.describe(crops)
    except Exception:
        together, failed = [None] * len(crops), True
    made = [said or _describe_alone(embedder, crop) for said, crop in zip(together, crops, strict=True)]
    if failed and all(isinstance(said, str) for said in made):
        _require_golden(embedder)
    return made


def _describe_alone(embedder: Embedder, crop: NDArray[np.uint8]) -> Described | str:
    try:
        return embedder.describe([crop])[0] or _NOT_FINITE
    except Exception as error:
        return f"the networks cannot be run on it ({type(error).__name__}); verify the bundle"


def _require_golden(embedder: Embedder) -> None:
    try:
        embedder.embed(embedder.bundle.golden(embedder.precision).crops)
    except BundleError:
        raise
    except Exception as error:  # it could at the start
        raise BundleError(
            f"bundle {embedder.bundle.short} can no longer be run: {type(error).__name__} ({embedder.provider_line}). Start "
            'again; if it stays so, set device = "cpu" in labref.toml, [inference].'
        ) from None
    embedder.golden_difference()


def _open(bundle: Bundle, device: Device, threads: int, precision: Literal["auto"] | Precision) -> Embedder:
    """See `Embedder.open`."""
    reason, fallback = "asked for in the configuration", None
    if device != "cpu":
        problem = cuda_problem()
        if problem is None:
            try:
                sessions = _sessions(bundle, [_CUDA, _CPU], threads)
                if sessions[0].get_providers()[0] == _CUDA:
                    line = f"inference on the GPU (CUDA, onnxruntime {onnxruntime.__version__})"
                    full = Embedder(bundle, *sessions, _CUDA, line)
                    return _reduced(full, [_CUDA, _CPU], threads, precision)
                missing = missing_library()
                named = "" if missing is None else f" ({missing} is missing or does not fit)"
                problem = f"the CUDA libraries could not be loaded{named}; install them with `pip install labref[cuda]`"
            except BundleError as error:
                problem = f"CUDA failed to start ({error})"
            fallback = problem
        if device == "cuda":
            raise BundleError(f'inference on CUDA was asked for, but {problem}. Set device = "auto" to use the CPU.')
        reason = problem
    plural = "" if threads == 1 else "s"
    line = f"inference on the CPU, {threads} thread{plural} (onnxruntime {onnxruntime.__version__}): {reason}"
    full = Embedder(bundle, *_sessions(bundle, [_CPU], threads), _CPU, line, fallback=fallback)
    return _reduced(full, [_CPU], threads, precision)


def _reduced(full: Embedder, providers: list[str], threads: int, precision: Literal["auto"] | Precision) -> Embedder:
    """The embedder with the bundle's trunk of reduced precision for its provider, or `full` where there is none that
    works, or another is asked for."""
    wanted = _REDUCED[full.provider]
    trunk = full.bundle.manifest.trunk(wanted)
    if trunk is None or precision not in ("auto", wanted):
        return full
    try:
        session = _session(full.bundle, trunk.file, providers, threads)
        if session.get_providers()[0] != full.provider:
            return full
        line = f"{full.provider_line}, {wanted} trunk"
        reduced = Embedder(full.bundle, session, full._encoder, full.provider, line, wanted, fallback=full.fallback)
        if precision == "auto":
            reduced.golden_difference()
    except BundleError:  # it has to earn its place on this computer; the full trunk says what is wrong, if it is
        full.tell_of_refused()
        return full
    return reduced


def _sessions(bundle: Bundle, providers: list[str], threads: int) -> tuple[Any, Any]:
    trunk, encoder = (_session(bundle, name, providers, threads) for name in ("trunk.onnx", _ENCODER))
    return trunk, encoder


def _ports(manifest: Manifest, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Inputs and outputs that the graph `name` must have: {name: (type, shape of one cell)}."""
    if name == _ENCODER:
        return {"features": ("tensor(float)", manifest.features), "latent": ("tensor(float)", (manifest.latent_size,))}
    return {
        "crops": ("tensor(uint8)", (256, 256, 3)),
        "probabilities": ("tensor(float)", (len(manifest.labels),)),
        "features": ("tensor(float)", manifest.features),
    }


def _check_ports(bundle: Bundle, name: str, session: Any) -> None:
    """Raise `BundleError` where inputs and outputs of a graph are not those that the manifest tells of."""
    found = {port.name: (port.type, port.shape) for port in (*session.get_inputs(), *session.get_outputs())}
    wanted = _ports(bundle.manifest, name)
    if set(found) != set(wanted):
        raise BundleError(
            f"bundle {bundle.short}: {name} has the inputs and outputs {', '.join(sorted(found))}; they must be "
            f"{', '.join(sorted(wanted))}"
        )
    for port, (kind, shape) in wanted.items():
        its_kind, its_shape = found[port]
        # a side may be left open in the file; `embed` looks at what comes out
        fits = len(its_shape) == len(shape) + 1 and all(
            not isinstance(side, int) or side == meant for side, meant in zip(its_shape[1:], shape, strict=True)
        )
        if its_kind != kind or not fits or isinstance(its_shape[0], int):
            raise BundleError(
                f"bundle {bundle.short}: {port} of {name} is {its_kind}{its_shape}; by its manifest it must be {kind} of any "
                f"number of cells, each {list(shape)}"
            )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _session(bundle: Bundle, name: str, providers: list[str], threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _QUIET
    # waiting threads that spin would take the time in which the next cells are decoded
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # the very bytes that were looked at are run, whatever became of the file meanwhile
    raw = bundle.read(name)
    try:
        check_graph(raw, name)
    except BundleError as error:
        raise BundleError(f"bundle {bundle.short}: {error}") from None
    try:
        session = onnxruntime.InferenceSession(raw, options, providers=providers)
    except Exception as error:  # onnxruntime raises its own types, and RuntimeError
        raise BundleError(f"bundle {bundle.short}: {name} cannot be run: {_first_line(error)}") from None
    _check_ports(bundle, name, session)
    return session


def expected_provider(device: Device) -> str:
    """ONNX Runtime's name of the provider that `Embedder.open` takes on `device`, where that starts."""
    return _CPU if device == "cpu" or cuda_problem() is not None else _CUDA


def cuda_problem() -> str | None:
    """Why CUDA cannot be used here, or None. Looked into before ONNX Runtime tries, which would say it in a page of
    warnings."""
    if _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA"
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this computer"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "no NVIDIA GPU in this computer"
    return _preload_problem()


def missing_library() -> str | None:
    """The first library that ONNX Runtime's CUDA provider lacks here, by its file name; None where it lacks none, or it
    cannot be told which."""
    capi = Path(onnxruntime.__file__).parent / "capi"
    if sys.platform == "win32":
        for name in _CUDA_DLLS:
            try:
                ctypes.CDLL(name)
            except OSError:
                return name
        return None
    try:
        # the provider needs what this one defines
        ctypes.CDLL(str(capi / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(capi / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        # as the loader says it: "libcublasLt.so.12: cannot open shared object file: No such file or directory"
        return str(error).partition(":")[0].rpartition("/")[2] or None
    return None


def _preload_problem() -> str | None:
    """Load CUDA and cuDNN from the wheels beside onnxruntime, if they are there; what it prints is not for people."""
    import contextlib
    import io

    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            preload()
    return None
