//! The macro that makes a section's rows.
//!
//! A row has the name, type, default, reader with its range, reload rule and documentation of one
//! key. The struct that holds the values, the reader of the file, the reload rule and
//! `config/tollgate.toml` all follow from it.

/// Makes a section from its rows: a struct with one field a key, `ROWS`, and `read`, which reads
/// every key before it gives up on one, so that every error is found. `check` names a function
/// that compares values with each other; it gets `None` for those that are wrong. `[listen.tls]` is a section in
/// another one.
macro_rules! section {
    (
        $(#[$meta:meta])*
        $vis:vis struct $Name:ident [$section:expr] {
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
            pub(super) const ROWS: &'static [$crate::config::row::Row] = &[$(
                $crate::config::row::Row {
                    name: concat!(stringify!($section), ".", stringify!($key)),
                    preset: $($crate::config::row::Preset::Default(stringify!($default)))?
                        $($crate::config::row::Preset::$preset(stringify!($example)))?,
                    range: || $crate::config::read::ReadKey::<$type>::range(&$read),
                    documentation: &[$($doc),*],
                    reload: [$($reload,)? $crate::config::row::Reload::Restart][0],
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
