"""Enhancement without tokens: spectral subtraction, and a small network that maps noisy frames to clean ones.

Source: Boll, "Suppression of acoustic noise in speech using spectral subtraction" (1979), equation 8; the second is the
regression that arXiv 2502.02942, section 1, sets itself against, as small as the other networks here.
Differs: the noise spectrum is a low quantile over the clip, since no pause is marked; the regression predicts log-mel frames.
"""
import torch
from jaxtyping import Float
from torch import Tensor, nn

from frugal.visual_tokenizers.gense_audio import BINS, check_audio, log_mel, mel_weights, spectra, standard
from frugal.visual_tokenizers.gense_nets import Convs, load_net


def spectral_subtraction(audio: Tensor, over: float = 2.0, floor: float = 0.02, quantile: float = 0.2) -> Float[Tensor, "b f 40"]:
    """Log-mel frames after taking `over` times the noise power off every bin; never below `floor` of the noisy power.

    quantile: share of frames whose power is taken as noise, bin by bin. Raises ValueError as `check_audio`.
    """
    power = spectra(check_audio(audio)).abs().square()
    noise = power.quantile(quantile, dim=1, keepdim=True)
    return standard(torch.maximum(power - over * noise, floor * power) @ mel_weights().T)


class Regression(nn.Module):
    """Noisy log-mel frames -> clean log-mel frames, trained on the absolute error."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.shape = {"width": width}
        self.net = Convs(BINS, width, BINS, (1, 2, 4, 8, 1))

    def forward(self, mel: Float[Tensor, "b f 40"]) -> Float[Tensor, "b f 40"]:
        return mel + self.net(mel)

    @torch.no_grad()
    def enhance(self, audio: Tensor) -> Float[Tensor, "b f 40"]:
        """Clean log-mel frames of noisy audio. Raises ValueError as `check_audio`."""
        return self(log_mel(check_audio(audio)))


def load_regression() -> Regression:
    """The trained network. Raises WeightsError."""
    return load_net("gense_regression", Regression)
