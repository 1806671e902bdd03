//! From one value to one type: what is read here is within its range, or says what is wrong.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use figment::value::Value;
use jiff::SignedDuration;

use super::error::ValueError;
use super::nearest::nearest;
use super::origin::Origin;

/// One value, before its type is known.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

impl Raw {
    /// A file has types of its own; everywhere else a number is text that looks like one.
    pub(super) fn is_typed(&self) -> bool {
        matches!(self.origin, Origin::File(_))
    }

    pub(super) fn text(&self) -> Result<&str, ValueError> {
        match &self.value {
            Value::String(_, text) => Ok(text),
            other => Err(ValueError::new(
                format!("is {}, and must be text", kind(other)),
                "write it in double quotes",
            )),
        }
    }

    /// The number, if the value is a whole one or text that reads as one.
    fn integer(&self) -> Option<i128> {
        match &self.value {
            Value::Num(_, number) => number.to_i128(),
            Value::String(_, text) if !self.is_typed() => text.parse().ok(),
            _ => None,
        }
    }
}

/// What a value is, for a reader who knows TOML.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Array(..) => "a list",
        Value::Dict(..) => "a section",
        Value::Empty(..) => "empty",
    }
}

/// A duration as people write it.
pub(super) fn human(duration: Duration) -> String {
    SignedDuration::try_from(duration).map_or_else(|_| "forever".to_owned(), |d| format!("{d:#}"))
}

pub(super) fn duration(
    raw: &Raw,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, ValueError> {
    let remedy = || {
        let (least, most) = (human(*range.start()), human(*range.end()));
        format!("write a duration from {least} to {most}, such as \"250ms\", \"5s\" or \"1m 30s\"")
    };
    let text = match &raw.value {
        Value::String(_, text) => text,
        other => {
            let problem = format!("is {}, and must be a duration in quotes", kind(other));
            return Err(ValueError::new(problem, remedy()));
        }
    };
    let signed: SignedDuration =
        text.parse().map_err(|_| ValueError::new("is not a duration", remedy()))?;
    match Duration::try_from(signed) {
        Err(_) => Err(ValueError::new("is negative", remedy())),
        Ok(value) if value < *range.start() => Err(ValueError::new("is too short", remedy())),
        Ok(value) if value > *range.end() => Err(ValueError::new("is too long", remedy())),
        Ok(value) => Ok(value),
    }
}

pub(super) fn whole<T>(raw: &Raw, range: &RangeInclusive<T>) -> Result<T, ValueError>
where
    T: TryFrom<i128> + PartialOrd + fmt::Display,
{
    let remedy = || format!("write a whole number from {} to {}", range.start(), range.end());
    let number = raw.integer().ok_or_else(|| ValueError::new("is not a whole number", remedy()))?;
    let value = T::try_from(number).ok().filter(|value| range.contains(value));
    value.ok_or_else(|| ValueError::new("is out of range", remedy()))
}

pub(super) fn size<T>(raw: &Raw, range: &RangeInclusive<u64>) -> Result<T, ValueError>
where
    T: TryFrom<u64>,
{
    let remedy = || {
        let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
        format!("write a size from {least} to {most}, such as \"48KiB\", or a number of bytes")
    };
    let size = match &raw.value {
        Value::String(_, text) => text.parse().ok(),
        _ => raw.integer().and_then(|bytes| bytes.try_into().ok()).map(ByteSize),
    };
    let bytes = size.ok_or_else(|| ValueError::new("is not a size", remedy()))?.as_u64();
    if range.contains(&bytes) {
        T::try_from(bytes).map_err(|_| ValueError::new("is too large", remedy()))
    } else {
        Err(ValueError::new("is out of range", remedy()))
    }
}

pub(super) fn boolean(raw: &Raw) -> Result<bool, ValueError> {
    match &raw.value {
        Value::Bool(_, value) => Ok(*value),
        Value::String(_, text) if !raw.is_typed() && text == "true" => Ok(true),
        Value::String(_, text) if !raw.is_typed() && text == "false" => Ok(false),
        _ => {
            Err(ValueError::new("is neither true nor false", "write true or false, without quotes"))
        }
    }
}

/// A share from 0 to 1.
pub(super) fn share(raw: &Raw) -> Result<f64, ValueError> {
    let number = match &raw.value {
        Value::Num(_, number) => number.to_i128().map_or(number.to_f64(), |n| match n {
            0 => Some(0.0),
            1 => Some(1.0),
            _ => Some(f64::INFINITY),
        }),
        Value::String(_, text) if !raw.is_typed() => text.parse().ok(),
        _ => None,
    };
    let remedy = "write a number from 0 to 1, such as 0.2";
    let number = number.ok_or_else(|| ValueError::new("is not a number", remedy))?;
    // NaN is in no range.
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err(ValueError::new("is out of range", remedy))
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(raw: &Raw, choices: &[(&str, T)]) -> Result<T, ValueError> {
    let text = raw.text()?;
    let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
    choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let remedy = match nearest(text, words.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"? It is one of {}", words.join(", ")),
            None => format!("write one of {}", words.join(", ")),
        };
        ValueError::new("is not one of the values this key has", remedy)
    })
}

/// Whether, in a file, a list of one item may be written without brackets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Allowed,
    Refused,
}

/// The items of a list. Outside a file, a list is text with commas, in brackets or not.
pub(super) fn items(raw: &Raw, scalar: Scalar) -> Result<Vec<Raw>, ValueError> {
    let item = |value: Value| Raw { value, origin: raw.origin.clone() };
    match &raw.value {
        Value::Array(_, items) => Ok(items.iter().cloned().map(item).collect()),
        Value::String(_, text) if !raw.is_typed() => Ok(split(text).map(item).collect()),
        Value::String(..) if scalar == Scalar::Allowed => Ok(vec![raw.clone()]),
        other => Err(ValueError::new(
            format!("is {}, and must be a list", kind(other)),
            "write it in square brackets, with each item in double quotes",
        )),
    }
}

fn split(text: &str) -> impl Iterator<Item = Value> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let unquoted = |item: &str| {
        let item = item.trim();
        let inner = item.strip_prefix('"').and_then(|item| item.strip_suffix('"'));
        Value::from(inner.unwrap_or(item))
    };
    // No text is no item; an empty item between commas is one, and is found wrong by its reader.
    let bare = Some(bare).filter(|bare| !bare.trim().is_empty());
    bare.into_iter().flat_map(move |bare| bare.split(',').map(unquoted))
}
