//! Sources that hold sources: which one it is, is known when the process runs.

use std::pin::Pin;

use super::error::KeyError;
use super::key::Key;
use super::source::{Pace, Source};

/// Any source.
pub(super) struct BoxedSource(Box<dyn AnySource>);

impl BoxedSource {
    pub(super) fn new(source: impl Source) -> Self {
        Self(Box::new(source))
    }
}

trait AnySource: Send + 'static {
    fn word(&self) -> &'static str;
    fn whence(&self) -> String;
    fn next(&self) -> Pace;
    fn fetch(&mut self) -> Pin<Box<dyn Future<Output = Result<Key, KeyError>> + Send + '_>>;
}

impl<S: Source> AnySource for S {
    fn word(&self) -> &'static str {
        self.as_str()
    }

    fn whence(&self) -> String {
        self.place()
    }

    fn next(&self) -> Pace {
        self.pace()
    }

    fn fetch(&mut self) -> Pin<Box<dyn Future<Output = Result<Key, KeyError>> + Send + '_>> {
        Box::pin(self.load())
    }
}

impl Source for BoxedSource {
    fn as_str(&self) -> &'static str {
        self.0.word()
    }

    fn place(&self) -> String {
        self.0.whence()
    }

    fn pace(&self) -> Pace {
        self.0.next()
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        self.0.fetch().await
    }
}
