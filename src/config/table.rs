//! What the table knows of a key, and the macro that makes a section's rows.
//!
//! A row has the name, type, default, reader with its range, reload rule and documentation of one
//! key. The struct that holds the values, the reader of the file, the reload rule and
//! `config/tollgate.toml` all follow from it.

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

/// Makes a section from its rows: a struct with one field a key, `ROWS`, and `read`, which reads
/// every key before it gives up on one, so that every error is found. `check` names a function
/// that compares values with each other; it gets `None` for those that are wrong.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Name:ident [$section:ident] {
            $(
                $(#[doc = $doc:literal])*
                $key:ident: $type:ty $(= $default:tt)? $(=> $preset:ident $example:tt)?,
                    $read:expr $(, $reload:expr)?;
            )*
        }
        $(check $check:ident($($checked:ident),*);)?
    ) => {
        $(#[$meta])*
        $vis struct $Name {
            $(
                #[doc = concat!("`", stringify!($section), ".", stringify!($key), "`")]
                #[doc = "```text"]
                $(#[doc = $doc])*
                #[doc = "```"]
                $vis $key: $type,
            )*
        }

        impl $Name {
            pub(super) const ROWS: &'static [$crate::config::table::Row] = &[$(
                $crate::config::table::Row {
                    name: concat!(stringify!($section), ".", stringify!($key)),
                    preset: $($crate::config::table::Preset::Default(stringify!($default)))?
                        $($crate::config::table::Preset::$preset(stringify!($example)))?,
                    range: || $crate::config::read::ReadKey::<$type>::range(&$read),
                    documentation: &[$($doc),*],
                    reload: [$($reload,)? $crate::config::table::Reload::Restart][0],
                },
            )*];

            /// `None` where a value is wrong.
            pub(super) fn read(r: &mut Reader<'_>) -> Option<Self> {
                let mut rows = Self::ROWS.iter();
                $(let $key = rows.next().and_then(|row| {
                    $crate::config::read::ReadKey::<$type>::read(&$read, r, row)
                });)*
                $($check(r, $($checked.as_ref()),*);)?
                Some(Self { $($key: $key?),* })
            }
        }
    };
}

pub(super) use section;
