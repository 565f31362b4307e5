"""The KV pool: its size, its views, and copies of blocks."""

import torch
from anaphora.kv_cache import KvCache, KvLayout


def test_a_block_is_copied_in_every_layer_and_nothing_else_changes() -> None:
    layout = KvLayout(num_layers=3, num_kv_heads=2, head_dim=8, dtype=torch.bfloat16)
    cache = KvCache(layout, num_blocks=6, block_size=4, device=torch.device("cpu"))
    cache.pool.copy_(torch.randn(cache.pool.shape))
    before = cache.pool.clone()
    cache.copy_blocks(torch.tensor([5, 0]), torch.tensor([2, 3]))
    for index in range(layout.num_layers):
        for kind, view in enumerate(cache.layer(index)[:2]):
            assert view.is_contiguous()
            for block, source in enumerate([0, 1, 5, 0, 4, 5, 6]):
                assert torch.equal(view[block], before[index, kind, source])


def test_the_size_of_a_token_is_what_the_pool_takes() -> None:
    layout = KvLayout(num_layers=3, num_kv_heads=2, head_dim=8, dtype=torch.float32)
    cache = KvCache(layout, num_blocks=5, block_size=16, device=torch.device("cpu"))
    assert layout.bytes_per_token == 3 * 2 * 2 * 8 * 4
    assert cache.pool.nbytes == layout.bytes_per_token * (cache.num_blocks + 1) * cache.block_size
