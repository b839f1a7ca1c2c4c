//! From a prompt's text to its tokens, once for all completions of a request: in short steps, of which few run at one time
//! and every text has one after the other, so that a long text delays no other one by more than its steps. Nobody who has
//! gone, and no drain, waits for more than the step that is under way.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use text::{Progress, Special};

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::request::{self, Prompt};

/// The tokens of a prompt, for each completion. The work is given up when nobody waits for it any more.
pub(crate) type Encoding = Shared<BoxFuture<'static, Result<Arc<[u32]>, Arc<Failure>>>>;

/// Begins to encode a prompt as soon as somebody waits for it.
pub(crate) fn begin(cluster: Arc<Cluster>, prompt: Prompt) -> Encoding {
    let encoding = async move { encode(&cluster, prompt).await.map_err(Arc::new) };
    encoding.boxed().shared()
}

async fn encode(cluster: &Cluster, prompt: Prompt) -> Result<Arc<[u32]>, Failure> {
    let text = match prompt {
        Prompt::Tokens(ids) => return Ok(ids.into()),
        Prompt::Text(text) => text,
    };
    let mut encoder = cluster.registry.tokenizer().encoder(text, Special::Add);
    loop {
        let permit = Arc::clone(&cluster.encoders).acquire_owned().await;
        // Work for a processor, so it stays off the threads that relay. The permit is given back when the step is over, even
        // if nobody waits for it any more.
        let step = tokio::task::spawn_blocking(move || {
            let progress = encoder.step();
            drop(permit);
            (encoder, progress)
        });
        let (next, progress) = step.await.map_err(|_| Failure::Encoder)?;
        encoder = next;
        let done = progress? == Progress::Done;
        check_length(cluster, encoder.ids().len(), Failure::far_too_long)?;
        if done {
            break;
        }
    }
    match encoder.into_ids() {
        ids if ids.is_empty() => Err(request::empty()),
        ids => Ok(ids.into()),
    }
}

/// Refuses a prompt that no target takes, where that is known before it is encoded.
pub(crate) fn check(cluster: &Cluster, prompt: &Prompt) -> Result<(), Failure> {
    let tokenizer = cluster.registry.tokenizer();
    match prompt {
        Prompt::Tokens(ids) => check_length(cluster, ids.len(), Failure::too_long),
        Prompt::Text(text) => {
            let tokens = tokenizer.least_tokens(text.len());
            check_length(cluster, tokens, Failure::far_too_long)
        }
    }
}

fn check_length(
    cluster: &Cluster,
    tokens: usize,
    refuse: impl FnOnce(usize, u32, String) -> Failure,
) -> Result<(), Failure> {
    match cluster.registry.longest_context() {
        Some((context, target)) if tokens >= context as usize => {
            Err(refuse(tokens, context, cluster.registry.address(target)))
        }
        Some(_) | None => Ok(()),
    }
}
