"""AdamW with warm-up, decay and clipping."""

import optax


def make_optimizer(
    steps: int,
    warmup_steps: int,
    peak_learning_rate: float,
    weight_decay: float,
    max_gradient_norm: float,
) -> optax.GradientTransformation:
    """Returns AdamW whose learning rate rises to its peak and then falls along a cosine to 2 %."""
    learning_rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak_learning_rate,
        warmup_steps=min(warmup_steps, steps // 4),
        decay_steps=steps,
        end_value=0.02 * peak_learning_rate,
    )
    return optax.chain(
        optax.clip_by_global_norm(max_gradient_norm),
        optax.adamw(learning_rate, b2=0.98, weight_decay=weight_decay),
    )
