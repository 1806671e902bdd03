//! The first source that is set up here, in the order of the provider's SDKs. It is waited for, and the one that
//! has had a key is kept: a moment's failure must not bring a key of another account, or the machine's.

use tracing::info;

use super::boxed::BoxedSource;
use super::error::KeyError;
use super::key::Key;
use super::source::{Pace, Source};

/// Sources that are tried in turn.
pub struct FirstOf {
    sources: Vec<BoxedSource>,
    chosen: Option<usize>,
}

impl FirstOf {
    pub(super) fn new(sources: Vec<BoxedSource>) -> Self {
        Self { sources, chosen: None }
    }

    fn chosen(&self) -> Option<&BoxedSource> {
        self.sources.get(self.chosen?)
    }
}

impl Source for FirstOf {
    /// The word of the source that has had a key.
    fn as_str(&self) -> &'static str {
        self.chosen().map_or("auto", Source::as_str)
    }

    fn place(&self) -> String {
        self.chosen().map_or_else(|| "keys.source = \"auto\"".to_owned(), Source::place)
    }

    fn pace(&self) -> Pace {
        self.chosen().map_or(Pace::BeforeExpiry, Source::pace)
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        if let Some(chosen) = self.chosen.and_then(|at| self.sources.get_mut(at)) {
            return chosen.load().await;
        }
        let mut absent = Vec::new();
        for (at, source) in self.sources.iter_mut().enumerate() {
            let source_word = source.as_str();
            match source.load().await {
                Ok(key) => {
                    self.chosen = Some(at);
                    let place = source.place();
                    info!(source = source_word, place, "keys.source = \"auto\" has found a source");
                    return Ok(key);
                }
                Err(error @ KeyError::Absent(_)) => absent.push(format!("{source_word}: {error}")),
                Err(error) => return Err(KeyError::NotYet { source_word, why: Box::new(error) }),
            }
        }
        Err(KeyError::NoSource(absent.join("; ")))
    }
}
