//! What can be asked of the cache.

use anaphora_core::{MatchEnd, Namespace, NamespaceUsage};
use anaphora_router::config::EngineConfig;

use crate::rig::{Rig, request};

#[tokio::test(start_paused = true)]
async fn the_cache_can_be_explained_listed_and_cleared() {
    let rig = Rig::new(EngineConfig::default()).await;
    rig.generate(request(0..50, 1)).await;
    let explain = |tokens: Vec<u32>| rig.engine.explain(Namespace::default(), tokens);
    let same = explain((0..50).collect()).await.unwrap();
    assert_eq!((same.num_cached_tokens, same.end), (49, MatchEnd::Complete));
    let other = explain((0..20).chain(30..50).collect()).await.unwrap();
    assert_eq!((other.num_cached_tokens, other.end), (20, MatchEnd::Diverges { cached: (20..50).collect() }));

    let usage = NamespaceUsage { namespace: Namespace::default(), num_blocks: 4 };
    assert_eq!(rig.engine.cache_usage().await.unwrap(), [usage]);
    assert_eq!(rig.engine.clear_cache("".into()).await.unwrap(), 4);
    assert_eq!(rig.engine.cache_usage().await.unwrap(), []);
    assert_eq!(explain((0..50).collect()).await.unwrap().end, MatchEnd::EmptyNamespace);
}
