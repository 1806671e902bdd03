//! What is known of a key.

/// One key.
#[derive(Debug)]
pub(super) struct Row {
    /// Such as `publish.wait`.
    pub(super) name: &'static str,
    pub(super) preset: Preset,
    /// The values that its reader takes, as in `1ms to 1h`; empty where the documentation says it.
    pub(super) range: fn() -> String,
    /// Lines of text; an example of tables, from a line with `[[` on, stands below the key.
    pub(super) documentation: &'static [&'static str],
    pub(super) reload: Reload,
}

/// What stands beside a key in the reference, in TOML.
#[derive(Debug, Clone, Copy)]
pub(super) enum Preset {
    /// What holds without another value.
    Default(&'static str),
    /// The key has no default and must be set: an example.
    Required(&'static str),
    /// The key has no default and may be left out: an example.
    Example(&'static str),
}

/// What a running process does with a new value.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reload {
    /// The change waits for a restart.
    Restart,
    /// It takes the new value up.
    Live,
    /// It takes the new value up, unless the key of this name has changed as well.
    LiveUnless(&'static str),
}

impl Row {
    /// The default as it would be written in the environment; empty without one.
    pub(super) fn default_text(&self) -> &'static str {
        match self.preset {
            Preset::Default(toml) => toml.trim_matches('"'),
            Preset::Required(_) | Preset::Example(_) => "",
        }
    }
}
