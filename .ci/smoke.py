"""Is an installed wheel worth anything? Values, gradients, decoding; no test tools, no compiler.

python smoke.py [--cuda-kernels]
"""

import dataclasses
import math
import sys
import sysconfig

import jax
import jax.numpy as jnp
import numpy as np

import jax_mbrnnt
from jax_mbrnnt import TDT, MultiblankRNNT, _ffi, greedy_decode, rnnt_loss

assert "site-packages" in jax_mbrnnt.__file__, jax_mbrnnt.__file__
if sysconfig.get_config_var("Py_GIL_DISABLED"):  # nothing has switched it on
    assert not sys._is_gil_enabled()
if "--cuda-kernels" in sys.argv:  # they import where there is neither driver nor GPU
    assert "cuda" in _ffi.MODULES

# All classes alike: each of the paths has the same probability, and they can be counted.
T, U, V = 9, 4, 7
losses = jax.jit(rnnt_loss)(jnp.zeros((2, T, U + 1, V)), jnp.ones((2, U), jnp.int32))
expected = (T + U) * math.log(V) - math.log(math.comb(T - 1 + U, U))
np.testing.assert_allclose(losses, expected, rtol=1e-6)

labels = jnp.array([[0, 1, 2, 0], [1, 1, 0, 2]])
lengths = jnp.array([9, 7]), jnp.array([4, 2])
for transducer in (MultiblankRNNT(big_blank_durations=(2, 4)), TDT(durations=(0, 1, 2))):
    for dtype in (jnp.float32, jnp.bfloat16):
        logits = jax.random.normal(jax.random.key(0), (2, T, U + 1, V), dtype)
        found = {}
        for implementation in ("ffi", "xla"):
            loss = dataclasses.replace(transducer, implementation=implementation)
            step = jax.jit(jax.value_and_grad(lambda x, loss=loss: loss(x, labels, *lengths).sum()))
            value, gradient = step(logits)
            found[implementation] = float(value), np.asarray(gradient, np.float32)
        np.testing.assert_allclose(found["ffi"][0], found["xla"][0], rtol=1e-5)
        tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(found["ffi"][1], found["xla"][1], rtol=0, atol=tolerance)

table = jax.random.normal(jax.random.key(1), (V, V))
decoding = greedy_decode(
    MultiblankRNNT(big_blank_durations=(2, 4)),
    lambda frame, prediction: frame + prediction,
    lambda labels, state: (table[labels], state),
    jax.random.normal(jax.random.key(2), (2, T, V)),
    initial_state=(),
)
assert np.isfinite(decoding.log_probs).all()
print(f"jax_mbrnnt {jax_mbrnnt.__version__} on JAX {jax.__version__}: as expected")
