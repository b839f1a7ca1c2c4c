//! From a prompt's text to its tokens, once for all completions of a request: in short steps, of which few run at one time
//! and every text has one after the other, so that a long text delays no other one by more than its steps. Nobody who has
//! gone, and no drain, waits for more than the step that is under way.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use text::{Control, Progress, Special};

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
    let tokenizer = cluster.registry.tokenizer();
    let (texts, special, control) = match prompt {
        Prompt::Tokens(ids) => return Ok(ids.into()),
        Prompt::Text(text, control) => (vec![text], Special::Add, control),
        Prompt::Chat(messages) => {
            let tokenizer = tokenizer.clone();
            let rendered = step(cluster, move || tokenizer.render_chat(&messages));
            // Those that a message spells out lie across two of the texts.
            (rendered.await??, Special::Omit, Control::Tokens)
        }
    };
    let mut ids = Vec::new();
    for text in texts {
        let mut encoder = tokenizer.encoder(text, special, control);
        loop {
            let stepped = step(cluster, move || {
                let progress = encoder.step();
                (encoder, progress)
            });
            let (next, progress) = stepped.await?;
            encoder = next;
            let done = progress? == Progress::Done;
            check_length(
                cluster,
                ids.len() + encoder.ids().len(),
                Failure::far_too_long,
            )?;
            if done {
                break;
            }
        }
        match ids.is_empty() {
            true => ids = encoder.into_ids(),
            false => ids.extend(encoder.ids()),
        }
    }
    match ids.is_empty() {
        true => Err(request::empty()),
        false => Ok(ids.into()),
    }
}

/// Work for a processor, so it stays off the threads that relay. Its permit is given back when it is over, even if nobody
/// waits for it any more.
async fn step<T: Send + 'static>(
    cluster: &Cluster,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let permit = Arc::clone(&cluster.encoders).acquire_owned().await;
    let worked = tokio::task::spawn_blocking(move || {
        let worked = work();
        drop(permit);
        worked
    });
    worked.await.map_err(|_| Failure::Encoder)
}

/// Refuses a prompt that no target takes, where that is known before it is encoded.
pub(crate) fn check(cluster: &Cluster, prompt: &Prompt) -> Result<(), Failure> {
    let tokenizer = cluster.registry.tokenizer();
    match prompt {
        Prompt::Tokens(ids) => check_length(cluster, ids.len(), Failure::too_long),
        Prompt::Text(text, _) => {
            let tokens = tokenizer.least_tokens(text.len());
            check_length(cluster, tokens, Failure::far_too_long)
        }
        // What a template makes of it is not known before.
        Prompt::Chat(_) => Ok(tokenizer.can_chat()?),
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
