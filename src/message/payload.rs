//! The body of a message, and how it travels.

use std::fmt;

use bytes::Bytes;

use super::MAX_SENT_PAYLOAD;

/// How the bytes of a message travel in the call's `Payload` parameter, which is a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadEncoding {
    /// Standard Base64 with padding, as the provider's reference recommends.
    Base64,
    /// As it is: the body must be UTF-8.
    Plain,
}

impl PayloadEncoding {
    /// The most bytes whose sent form still has at most [`MAX_SENT_PAYLOAD`] characters.
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Base64 => MAX_SENT_PAYLOAD / 4 * 3,
            Self::Plain => MAX_SENT_PAYLOAD,
        }
    }
}

/// The body of a message: bounded, and fit for its encoding.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload {
    bytes: Bytes,
    form: PayloadForm,
}

/// What the bytes of a payload are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PayloadForm {
    /// A body, which is still to be encoded.
    #[default]
    Body,
    /// Text as the `Payload` parameter has it: a caller with an SDK has encoded it.
    Encoded,
}

/// Why bytes are not a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// More bytes than the limit.
    #[error("the body has more than {limit} bytes")]
    TooLarge {
        /// The most bytes a body may have.
        limit: usize,
    },
    /// The topic's encoding is `plain` and the body is not text.
    #[error(
        "the body is not UTF-8, which the encoding \"plain\" of its topic (upstream.payload, upstream.payloads) needs"
    )]
    NotUtf8,
}

impl Payload {
    /// Takes a body of at most `limit` bytes.
    pub fn new(
        bytes: Bytes,
        encoding: PayloadEncoding,
        limit: usize,
    ) -> Result<Self, PayloadError> {
        let limit = limit.min(encoding.max_payload());
        if bytes.len() > limit {
            return Err(PayloadError::TooLarge { limit });
        }
        if encoding == PayloadEncoding::Plain && std::str::from_utf8(&bytes).is_err() {
            return Err(PayloadError::NotUtf8);
        }
        Ok(Self { bytes, form: PayloadForm::Body })
    }

    /// Takes text as the `Payload` parameter has it.
    pub fn encoded(text: Bytes) -> Result<Self, PayloadError> {
        let payload = Self::new(text, PayloadEncoding::Plain, MAX_SENT_PAYLOAD)?;
        Ok(Self { form: PayloadForm::Encoded, ..payload })
    }

    /// Takes back a body that was a payload before: bounds may have changed since, and what was
    /// accepted stays accepted.
    pub fn kept(bytes: Bytes, form: PayloadForm) -> Self {
        Self { bytes, form }
    }

    /// What its bytes are.
    pub fn form(&self) -> PayloadForm {
        self.form
    }

    /// The bytes as they were posted, shared.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The bytes as they were posted.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Payload {
    /// Contents are the caller's business and never printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.bytes.len())
    }
}
