"""A file with its images bound to its device: the two runs that are timed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .classifier import Classifier
from .providers import ON_GPU, runtime_library
from .session import SessionSettings, open_session


@dataclass(frozen=True)
class BoundRuns:
    """Both run one whole batch and return when it is done.

    ``end_to_end``: input and output arrays on the host; it returns the class scores ``[n, classes]``. ``on_device``: inputs and
    outputs stay on the device; on the CPU this saves the allocation of outputs and the checks of inputs.
    """

    end_to_end: Callable[[], Any]
    on_device: Callable[[], Any]


def bind(
    classifier: Classifier, images: NDArray[Any], outputs: int, provider: str, settings: SessionSettings
) -> BoundRuns:
    """Open a new session for a file and bind the images.

    Args:
        images: ``[n, C, H, W]`` on the host.
        outputs: class scores per image, needed to allocate the output before the first run, since CUDA graphs record the
            addresses of inputs and outputs.
    """
    session = open_session(classifier.path, provider, settings).session
    value = runtime_library().OrtValue
    device = "cuda" if provider in ON_GPU else "cpu"
    feed = classifier.feed(images)
    (host,) = feed.values()
    given = value.ortvalue_from_numpy(host, device, 0)
    scores = value.ortvalue_from_shape_and_type((len(images), outputs), classifier.output_type, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(classifier.input_name, given)
    binding.bind_ortvalue_output(classifier.output_name, scores)

    def on_device() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def through_bound_buffers() -> NDArray[Any]:
        given.update_inplace(host)
        on_device()
        found: NDArray[Any] = scores.numpy()
        return found

    def plainly() -> NDArray[Any]:
        found: NDArray[Any] = session.run([classifier.output_name], feed)[0]
        return found

    return BoundRuns(through_bound_buffers if settings.cuda_graphs else plainly, on_device)
