//! Text that others wrote, as logs, terminals, problems and metrics may show it.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Deserializer};

/// The most characters that are kept. The provider's own codes and ids have about 40.
const MOST: usize = 128;
/// Stands for a character that must not be shown. A code with one is not the code without it.
const HIDDEN: char = '\u{fffd}';

/// Text of the provider or of a peer, on one line, cut, and without characters that a terminal or a
/// browser acts on. There is no other way to make one than [`clean`].
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CleanText(Box<str>);

/// Text as it may be shown: at most 128 characters, and `U+FFFD` for each control, bidirectional or
/// invisible character.
pub fn clean(text: &str) -> CleanText {
    let mut rest = text.chars();
    let mut shown: String =
        rest.by_ref().take(MOST).map(|c| if is_shown(c) { c } else { HIDDEN }).collect();
    if rest.next().is_some() {
        shown.pop();
        shown.push('…');
    }
    CleanText(shown.into())
}

/// What `char::is_control` has not: they change the direction or the place of other text, or cannot be
/// seen.
fn is_shown(c: char) -> bool {
    let is_hidden = matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !is_hidden
}

impl CleanText {
    /// Whether there is nothing to read in it.
    pub fn is_blank(&self) -> bool {
        self.0.chars().all(|c| c.is_whitespace() || c == HIDDEN)
    }
}

impl Deref for CleanText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CleanText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CleanText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<&str> for CleanText {
    fn from(text: &str) -> Self {
        clean(text)
    }
}

impl From<String> for CleanText {
    fn from(text: String) -> Self {
        clean(&text)
    }
}

impl From<Box<str>> for CleanText {
    fn from(text: Box<str>) -> Self {
        clean(&text)
    }
}

impl From<CleanText> for Box<str> {
    fn from(text: CleanText) -> Self {
        text.0
    }
}

impl From<CleanText> for String {
    fn from(text: CleanText) -> Self {
        text.0.into()
    }
}

impl<'de> Deserialize<'de> for CleanText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_not_shown() {
        for (text, shown) in [
            ("Throttling.User", "Throttling.User"),
            ("\u{1b}[31mred\u{7}", "\u{fffd}[31mred\u{fffd}"),
            ("a\r\nb\tc\0d\u{7f}", "a\u{fffd}\u{fffd}b\u{fffd}c\u{fffd}d\u{fffd}"),
            ("csi\u{9b}31m", "csi\u{fffd}31m"),
            ("abc\u{202e}def\u{2066}", "abc\u{fffd}def\u{fffd}"),
            ("zero\u{200b}width\u{feff}", "zero\u{fffd}width\u{fffd}"),
            ("line\u{2028}\u{85}", "line\u{fffd}\u{fffd}"),
            ("tag\u{e0041}", "tag\u{fffd}"),
            ("Zürich 消息", "Zürich 消息"),
        ] {
            assert_eq!(&*clean(text), shown, "{text:?}");
        }
        assert!(clean("\0 \u{200b}").is_blank() && clean("").is_blank());
        assert!(!clean("\0x").is_blank());
    }

    #[test]
    fn what_is_too_long_is_cut_between_characters() {
        for text in ["x".repeat(65_536), "消".repeat(65_536), "\u{202e}".repeat(65_536)] {
            let shown = clean(&text);
            assert_eq!(shown.chars().count(), MOST);
            assert!(shown.ends_with('…'));
        }
        let longest = "x".repeat(MOST);
        assert_eq!(&*clean(&longest), longest);
    }
}
