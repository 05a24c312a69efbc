"""Log-mel features, as Kaldi makes them."""

from typing import NamedTuple

import kaldi_native_fbank as knf
import numpy as np

FRAME_SECONDS = 0.01


class Filters(NamedTuple):
    """What is heard: mel bands between two frequencies, at a sample rate.

    Attributes:
      sample_rate: in Hz.
      bands: how many.
      low: where the first begins, in Hz.
      high: where the last ends, in Hz; as far below half of the sample rate if not positive.
    """

    sample_rate: int
    bands: int
    low: float
    high: float


class LogMel:
    """Log-mel features of a waveform that comes in pieces, a frame every 10 ms."""

    def __init__(self, filters: Filters) -> None:
        options = knf.FbankOptions()
        options.frame_opts.samp_freq = filters.sample_rate
        options.frame_opts.frame_shift_ms = 1000 * FRAME_SECONDS
        options.frame_opts.dither = 0.0
        options.mel_opts.num_bins = filters.bands
        options.mel_opts.low_freq = filters.low
        options.mel_opts.high_freq = filters.high
        self._filters = filters
        self._filter_bank = knf.OnlineFbank(options)
        self._done = 0

    def hear(self, samples: np.ndarray, *, is_last: bool) -> np.ndarray:
        """Takes the next samples `[N]`; returns the frames that they complete, `[F, bands]`."""
        self._filter_bank.accept_waveform(self._filters.sample_rate, samples)
        if is_last:
            self._filter_bank.input_finished()
        ready = range(self._done, self._filter_bank.num_frames_ready)
        self._done = ready.stop
        frames = [self._filter_bank.get_frame(i) for i in ready]
        return np.reshape(frames, (-1, self._filters.bands)).astype(np.float32)


def log_mel(waveform: np.ndarray, filters: Filters) -> np.ndarray:
    """Returns the log-mel features `[F, bands]` of a waveform `[N]`."""
    return LogMel(filters).hear(waveform, is_last=True)
