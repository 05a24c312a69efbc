"""The stages in float64, written as directly as numpy allows, and the logits' number formats."""

import numpy as np

INF = np.inf
NEXT_LABEL, NOTHING = -1, -2
# Duration, emits, and of each head the class that it reads, or one of the above.
Arc = tuple[int, int, tuple[int, ...]]


def real(dtype: str) -> type:
    return np.float64 if dtype == "f64" else np.float32


def store(x: np.ndarray, dtype: str) -> np.ndarray:
    """float64 -> what stands in memory."""
    if dtype == "bf16":
        bits = x.astype(np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)
    return x.astype({"f32": np.float32, "f64": np.float64, "f16": np.float16}[dtype])


def load(x: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


def extent(num_frames: int, num_labels: int, T: int, U1: int) -> tuple[int, int, bool]:
    """What of an utterance is looked at, and whether its lengths are valid."""
    if 0 <= num_frames <= T and 0 <= num_labels < U1:
        return num_frames, num_labels, True
    return 0, -1, False


def heads(x, sizes: list[int]):
    """The heads of rows, one behind the other."""
    return np.split(x, np.cumsum(sizes)[:-1], axis=-1)


def columns(v: int, labels, u: int) -> list[tuple[int, int]]:
    """Which class an arc that reads v reads in which of the columns 0 to u."""
    if v == NEXT_LABEL:
        return [(k, int(labels[k])) for k in range(u)]
    return [(k, v) for k in range(u + 1)]


def arc_log_probs(x, labels, frame_counts, label_counts, arcs: list[Arc], sizes, sigmas):
    """Arc log-probabilities [B, T, U+1, A], log-normalizers [B, T, U+1, H]: 0 of a head of -inf."""
    B, T, U1, _ = x.shape
    log_probs = np.full((B, T, U1, len(arcs)), -INF)
    normalizers = np.zeros((B, T, U1, len(sizes)))
    for b in range(B):
        t, u, ok = extent(frame_counts[b], label_counts[b], T, U1)
        if t == 0 or not ok:
            continue
        own = log_probs[b, :t, : u + 1]
        own[...] = -sigmas[b]
        for h, rows in enumerate(heads(x[b, :t, : u + 1], sizes)):
            most = rows.max(-1)
            shift = np.where(most == -INF, 0, most)
            total = np.exp(rows - shift[..., None]).sum(-1)
            n = np.where(total == 0, 0, shift + np.log(total))
            normalizers[b, :t, : u + 1, h] = n
            for a, (_, _, reads) in enumerate(arcs):
                if reads[h] == NOTHING:
                    continue
                for k, v in columns(reads[h], labels[b], u):
                    known = 0 <= v < sizes[h]
                    own[:, k, a] += rows[:, k, v] - n[:, k] if known else np.nan
        for a, (_, _, reads) in enumerate(arcs):
            if reads[0] == NEXT_LABEL:
                own[:, u, a] = -INF  # no label is left, whatever is in the row
    return log_probs, normalizers


def _alphas(weights, arcs: list[Arc], t_n: int, u_n: int):
    """Log alphas [t_n, u_n + 1] and the log-likelihood."""
    add = np.logaddexp
    alphas = np.full((t_n, u_n + 1), -INF)
    for t in range(t_n):
        row = np.full(u_n + 1, -INF)
        if t == 0:
            row[0] = 0.0
        for a, (d, emits, _) in enumerate(arcs):
            if d == 0 or t < d:
                continue
            if emits:
                row[1:] = add(row[1:], alphas[t - d, :-1] + weights[t - d, :u_n, a])
            else:
                row = add(row, alphas[t - d] + weights[t - d, : u_n + 1, a])
        for a, (d, _, _) in enumerate(arcs):
            if d == 0:
                for u in range(1, u_n + 1):
                    row[u] = add(row[u], row[u - 1] + weights[t, u - 1, a])
        alphas[t] = row
    likelihood = -INF if (t_n or u_n) else 0.0
    for a, (d, emits, _) in enumerate(arcs):
        if not emits and d <= t_n:
            likelihood = add(likelihood, alphas[t_n - d, u_n] + weights[t_n - d, u_n, a])
    return alphas, likelihood


def _arc_betas(weights, arcs: list[Arc], t_n: int, u_n: int):
    """Of every arc its weight and what follows, in logarithms [t_n, u_n + 1, A]."""
    add = np.logaddexp
    betas = np.full((t_n, u_n + 1), -INF)
    of_arcs = np.full((t_n, u_n + 1, len(arcs)), -INF)
    for t in range(t_n - 1, -1, -1):
        row = np.full(u_n + 1, -INF)
        for a, (d, emits, _) in enumerate(arcs):
            if d == 0:
                continue
            if t + d < t_n and emits:
                of_arcs[t, :-1, a] = weights[t, :u_n, a] + betas[t + d, 1:]
            elif t + d < t_n:
                of_arcs[t, :, a] = weights[t, : u_n + 1, a] + betas[t + d]
            elif t + d == t_n and not emits:
                of_arcs[t, u_n, a] = weights[t, u_n, a]
            row = add(row, of_arcs[t, :, a])
        for a, (d, _, _) in enumerate(arcs):
            if d == 0:
                for u in range(u_n - 1, -1, -1):
                    of_arcs[t, u, a] = weights[t, u, a] + row[u + 1]
                    row[u] = add(row[u], of_arcs[t, u, a])
        betas[t] = row
    return of_arcs


def lattice(weights, arcs: list[Arc], frame_counts, label_counts):
    """Losses [B] and arc posteriors [B, T, U+1, A]. At most one arc has no duration."""
    B, T, U1, _ = weights.shape
    losses, posteriors = np.zeros(B), np.zeros(weights.shape)
    for b in range(B):
        t_n, u_n, ok = extent(frame_counts[b], label_counts[b], T, U1)
        if not ok:
            losses[b] = posteriors[b] = np.nan
            continue
        alphas, likelihood = _alphas(weights[b], arcs, t_n, u_n)
        losses[b] = -likelihood
        own = posteriors[b, :t_n, : u_n + 1]
        if np.isnan(likelihood):
            own[...] = np.nan
        elif likelihood > -INF:
            exponent = alphas[:, :, None] + _arc_betas(weights[b], arcs, t_n, u_n) - likelihood
            own[...] = np.where(np.isnan(exponent), 0, np.minimum(np.exp(exponent), 1))
    return losses, posteriors


def logit_gradients(
    x, labels, frame_counts, label_counts, arcs: list[Arc], sizes,
    normalizers, posteriors, cotangents, label_weights, clamps,
):  # fmt: skip
    B, T, U1, _ = x.shape
    gradients = np.zeros(x.shape)
    for b in range(B):
        t, u, ok = extent(frame_counts[b], label_counts[b], T, U1)
        if not ok:
            gradients[b] = np.nan
            continue
        nodes = b, slice(t), slice(u + 1)
        for h, out in enumerate(heads(gradients[nodes], sizes)):
            reads = [of[h] for _, _, of in arcs]
            # FastEmit and the clamp are of the first head.
            weights = [label_weights[b] if v == NEXT_LABEL else 1 for v in reads]
            weighed = posteriors[nodes] * weights
            weighed[..., [v == NOTHING for v in reads]] = 0
            rows = heads(x[nodes], sizes)[h]
            out[...] = np.exp(rows - normalizers[(*nodes, h)][..., None])
            out *= weighed.sum(-1, keepdims=True)
            for a, fixed in enumerate(reads):
                for k, v in columns(fixed, labels[b], u) if fixed != NOTHING else []:
                    if 0 <= v < sizes[h]:
                        out[:, k, v] -= weighed[:, k, a]
            if h == 0 and clamps[b] > 0:
                out[...] = np.where(np.isnan(out), out, np.clip(out, -clamps[b], clamps[b]))
            out *= cotangents[b]
            out[(weighed == 0).all(-1)] = 0
    return gradients
