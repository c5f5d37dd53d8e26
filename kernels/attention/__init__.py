"""Attention to paged sequences: the cache, the batch and its plan, the operation and its kernels.

Used by others: `AttentionPlan`, `KVCache`, `PagedBatch`, `allocate_kv_cache`, `page_bytes`,
`paged_attention`, `plan_attention`, `store_kv`.
"""
