//! Whatever is given, the answer is a configuration or its mistakes, never a panic.

use proptest::prelude::*;
use tollgate::config::{explain, keys, load};

use super::{File, LEAST};

/// Values that are close to right more often than not.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,40}",
        "-?[0-9]{1,25}(ms|s|m|h|KiB|B|GiB)?",
        "(http|https|unix|ftp)?(://|:)?[a-z0-9.:@/?#\\[\\]*]{0,20}",
        Just("nan".to_owned()),
        Just("inf".to_owned()),
        Just("\u{0}\u{1b}[31m".to_owned()),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(keys()).prop_map(str::to_owned),
        "\\PC{0,20}",
        "[a-z]{1,8}(\\.[a-z_]{1,12}){0,3}"
    ]
}

fn assert_said(answer: Result<tollgate::config::Loaded, tollgate::config::ConfigErrors>) {
    match answer {
        Ok(loaded) => assert!(!explain(&loaded).is_empty()),
        Err(mistakes) => {
            assert!(mistakes.iter().count() > 0);
            for mistake in &mistakes {
                assert!(!mistake.problem.is_empty() && !mistake.remedy.is_empty());
            }
            let text = mistakes.to_string();
            assert!(!text.contains('\u{1b}'), "{text:?}");
        }
    }
}

proptest! {
    #[test]
    fn any_text_as_a_file(text in "(\\PC|\n|\t|\u{1b}){0,200}") {
        assert_said(load(Some(&File::new(text).path), [], &[]));
    }

    #[test]
    fn any_bytes_as_a_file(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        assert_said(load(Some(&File::new(bytes).path), [], &[]));
    }

    #[test]
    fn any_toml_value_under_any_key(
        key in proptest::sample::select(keys()),
        text in value(),
        shape in 0..7,
        number in any::<i64>(),
        real in any::<f64>(),
    ) {
        let text = format!("{text:?}");
        let value = match shape {
            0 => text,
            1 => number.to_string(),
            2 => if real.is_finite() { format!("{real:?}") } else { "nan".to_owned() },
            3 => format!("[{text}, {number}]"),
            4 => format!("{{ x = {text} }}"),
            5 => format!("[{{ instance_id = {text}, topics = {text} }}, {number}]"),
            _ => "1979-05-27T07:32:00Z".to_owned(),
        };
        assert_said(load(Some(&File::new(format!("{key} = {value}\n")).path), [], &[]));
    }

    #[test]
    fn any_environment(pairs in proptest::collection::vec((key(), value()), 0..6)) {
        let name = |key: String| format!("TOLLGATE__{}", key.to_uppercase().replace('.', "__"));
        let env: Vec<_> = pairs.into_iter().map(|(key, value)| (name(key), value)).collect();
        assert_said(load(Some(&File::new(LEAST).path), env, &[]));
    }

    #[test]
    fn any_flags(pairs in proptest::collection::vec((key(), value()), 0..6)) {
        assert_said(load(Some(&File::new(LEAST).path), [], &pairs));
    }
}
