//! What the log tells an operator about an egress address.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::Level;

use crate::ceiling::{Ceiling, Class, Read, Start};
use crate::config::{Ceilings, Unanswered};
use crate::log_limiter::captured::capture;

#[tokio::test(start_paused = true)]
async fn a_blocked_address_is_named() {
    let (log, _guard) = capture(Level::INFO);
    let unanswered = Unanswered { min: Duration::from_secs(10), max: Duration::from_mins(5) };
    let ceilings = Ceilings { account: None, egress_ip: Some(300), retry_share: 0.2, unanswered };
    let ceiling = Ceiling::start(&ceilings, 2, 100, Start::Alone);
    ceiling.name_egress(vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()]);
    // The second address is blocked, and the probe five minutes later is answered.
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_mins(6) {
        let ticket = ceiling.request(Class::Fresh, Instant::now() + Duration::from_secs(1));
        let permit = ticket.unwrap().permit().await.unwrap();
        if permit.egress() == 1 && begin.elapsed() < Duration::from_mins(1) {
            permit.lost(Read::Never);
        } else {
            permit.answered();
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ceiling.status().blocked, [false, false]);
    let log = log.text();
    let lines: Vec<_> = log.lines().collect();
    let [blocked, over] = lines[..] else { panic!("{log}") };
    assert!(blocked.contains("probably blocks this egress address"), "{log}");
    assert!(over.contains("answers calls from this egress address again"), "{log}");
    for line in [blocked, over] {
        assert!(line.ends_with("address=\"10.0.0.2\""), "{log}");
    }
}
