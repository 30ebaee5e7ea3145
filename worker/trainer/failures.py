"""Why a run ends without a result."""

from __future__ import annotations

OUT_OF_MEMORY_HINT = (
    "Lower hyperparameters.max_length; the rows of a step are already split, so batch_size changes little. "
    "hyperparameters.gradient_checkpointing and method.type 'qlora' need less, and so does a smaller base model."
)


# What Python and safetensors say of a full disk, and what torch does, by how far its writing came.
_NO_ROOM = (
    "No space left on device",
    "Disk quota exceeded",
    "PytorchStreamWriter failed writing file",
    "basic_ios::clear: iostream error",
    ". unexpected pos ",
)


# What CUDA's libraries say when a GPU's memory is full, and when a kernel was given a value out of range. The latter is a fault
# of what was computed; any other CUDA error may be one of the GPU.
_NO_GPU_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_ASSERTED = "device-side assert"


class Failure(Exception):
    """The run cannot go on: a code of `docs/api.md`, what is wrong, what to do about it, and, if it is known before the run
    begins, the field of the job."""

    def __init__(self, code: str, message: str, hint: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.param = param


class Gone(Exception):
    """Another process of the run is not there any more, without which nothing can go on."""


class Stopped(BaseException):
    """The run was asked to stop (SIGTERM). Not an `Exception`, so that no library swallows it."""


def unreadable_model(folder: str, what: str, error: Exception) -> Failure:
    """The failure to read `what` of the base model in `folder`."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    failure = Failure(
        "model_unreadable",
        f"The base model's {what} cannot be read from {folder}: {reason}",
        "Register the model from a folder that transformers can load, with safetensors weights and tokenizer.json.",
    )
    return of_the_machine(error) or failure


def not_finite(what: str, value: float, step: int) -> Failure:
    """The failure of a run that has come to an infinity, or to what is no number."""
    return Failure(
        "loss_not_finite",
        f"The {what} was {value} at step {step}.",
        "Lower hyperparameters.learning_rate. At step 1 the cause may be the base model's weights.",
    )


def of_the_machine(error: Exception) -> Failure | None:
    """The failure of the machine that a library's exception stands for: no memory, no disk (reading may show its progress in a
    file), or perhaps a GPU that does not work. None if it is none of these."""
    words, name = _words(error), type(error).__name__
    # CUDA's own error, Python's, and the RuntimeError that PyTorch's CPU allocator raises.
    is_cpu_allocator = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    is_cuda = name == "AcceleratorError" or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
    is_gpu_full = is_cuda and any(said in str(error) for said in _NO_GPU_MEMORY)
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or is_cpu_allocator or is_gpu_full:
        return Failure("out_of_memory", f"The machine ran out of memory: {words}", OUT_OF_MEMORY_HINT)
    if any(said in str(error) for said in _NO_ROOM):
        return Failure("disk_full", f"The worker's disk is full: {words}", "Make room in its BURNISH_HOME.")
    if is_cuda and _ASSERTED not in str(error):
        return Failure("gpu_failed", f"The GPU failed: {words}", "`dmesg` and `nvidia-smi -q` show its state.")
    return None


def of_anything(error: Exception) -> Failure:
    """The failure that an exception of a library is: the machine's, or a fault."""
    fault = f"{type(error).__name__}: {_words(error)}"
    return of_the_machine(error) or Failure("trainer_error", fault, "The job's log has the whole traceback.")


def _words(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")
