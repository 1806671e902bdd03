//! The page's files, which are built into the binary. The page loads nothing from anywhere else.

use std::sync::LazyLock;

use http::StatusCode;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use sha2::{Digest, Sha256};

use crate::server::{Reply, reply};
use crate::signing::encode;

/// Only what this origin serves, nothing inline, and no markup made from strings.
const POLICY: &str = "default-src 'none'; connect-src 'self'; img-src 'self'; script-src 'self'; \
                      style-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, content type, text.
const FILES: [(&str, &str, &str); 9] = [
    ("/", HTML, include_str!("page/index.html")),
    ("/page/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/page/page.css", STYLE, include_str!("page/page.css")),
    ("/page/page.js", SCRIPT, include_str!("page/page.js")),
    ("/page/chart.js", SCRIPT, include_str!("page/chart.js")),
    ("/page/words.js", SCRIPT, include_str!("page/words.js")),
    // uPlot 1.6.32, MIT: its licence must go with every copy.
    ("/page/uplot.LICENSE", "text/plain; charset=utf-8", include_str!("page/uplot.LICENSE")),
    ("/page/uplot.min.css", STYLE, include_str!("page/uplot.min.css")),
    ("/page/uplot.min.js", SCRIPT, include_str!("page/uplot.min.js")),
];

/// The entity tag of each file: its hash, so that browsers load a new release's files at once.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let tag = |text: &str| format!("\"{}\"", encode::hex(&Sha256::digest(text)[..8]));
    FILES.iter().map(|(.., text)| tag(text)).collect()
});

/// The page or one of its files; `None`: there is no such file.
pub(super) fn answer(path: &str, request: &HeaderMap) -> Option<Reply> {
    let at = FILES.iter().position(|(name, ..)| *name == path)?;
    let ((_, kind, text), tag) = (FILES[at], &TAGS[at]);
    let known = request.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    let unchanged = known.is_some_and(|tags| tags.split(',').any(|known| known.trim() == tag));
    let (status, text) =
        if unchanged { (StatusCode::NOT_MODIFIED, "") } else { (StatusCode::OK, text) };
    let mut reply = reply(status, kind, text);
    let headers = reply.headers_mut();
    for (name, value) in [
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // It cannot fail: quotes and hexadecimal digits are valid in a header.
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;

    use super::*;

    #[test]
    fn unchanged_files_are_not_sent_again() {
        for (path, kind, text) in FILES {
            assert!(!text.is_empty(), "{path}");
            let first = answer(path, &HeaderMap::new()).unwrap();
            assert_eq!(
                (first.status(), &first.headers()[CONTENT_TYPE]),
                (StatusCode::OK, &HeaderValue::from_static(kind))
            );
            let mut asked = HeaderMap::new();
            asked.insert(IF_NONE_MATCH, first.headers()[ETAG].clone());
            assert_eq!(answer(path, &asked).unwrap().status(), StatusCode::NOT_MODIFIED);
            asked.insert(IF_NONE_MATCH, HeaderValue::from_static("\"other\""));
            assert_eq!(answer(path, &asked).unwrap().status(), StatusCode::OK);
        }
        for path in ["/page/", "/page/../page.rs", "/page/page", "/page/PAGE.JS"] {
            assert!(answer(path, &HeaderMap::new()).is_none(), "{path}");
        }
    }

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let html = FILES[0].2;
        let names = html.split(['"']).filter(|word| word.starts_with("page/"));
        assert_eq!(names.clone().count(), FILES.len() - 1);
        for name in names {
            assert!(FILES.iter().any(|(path, ..)| path[1..] == *name), "{name}");
        }
    }
}
