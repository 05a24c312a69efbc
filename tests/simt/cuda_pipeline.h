// Stand-in for CUDA's <cuda_pipeline.h>: copies from global to shared memory that are done when the
// thread waits for them, and not a moment earlier (simt.h).
#pragma once

#include "cuda_runtime.h"

__forceinline__ void __pipeline_memcpy_async(void* to, const void* from, size_t size,
                                             size_t zero_fill = 0,
                                             simt::Site site = simt::Site::Here()) {
  simt::CopyLater(to, from, size, zero_fill, site);
}

inline void __pipeline_commit(simt::Site site = simt::Site::Here()) { simt::CommitCopies(site); }

// Waits for all batches but the last `prior`.
inline void __pipeline_wait_prior(size_t prior, simt::Site site = simt::Site::Here()) {
  simt::WaitForCopies(prior, site);
}
