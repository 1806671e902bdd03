//! Bad configurations, and what is said about them.

use tollgate::config::{ConfigError, ConfigErrors, load};

use super::{File, LEAST, owned, read, read_with};

const PROVIDER: &str =
    "[upstream]\nendpoint = \"onsmqtt.cn-hangzhou.aliyuncs.com\"\ninstance_id = \"x\"\n";

/// That there is one mistake, with this key and these words.
fn assert_one(mistakes: &ConfigErrors, key: &str, words: &str, given: &str) -> ConfigError {
    let all: Vec<_> = mistakes.iter().collect();
    assert_eq!(all.len(), 1, "{given}\n{mistakes}");
    assert_eq!(all[0].key, key, "{given}\n{mistakes}");
    let text = all[0].to_string();
    assert!(text.contains(words), "{given}\nexpected {words:?} in\n{text}");
    assert!(!all[0].remedy.is_empty() && text.lines().count() == 2, "{text}");
    all[0].clone()
}

/// Lines beside the required ones; those of `[upstream]` come first.
#[test]
fn in_a_file() {
    for (lines, key, words) in [
        // Keys that are not in the table.
        ("[publish]\nwiat = \"5s\"", "publish.wiat", "did you mean publish.wait?"),
        ("[publish]\nfoo = 1", "publish.foo", "is not a key"),
        ("[publsh]\nwait = \"5s\"", "publsh", "did you mean [publish]?"),
        ("idle_timout = \"1s\"", "upstream.idle_timout", "upstream.idle_timeout?"),
        ("[zzz.deep]\nx = 1", "zzz", "is not a section"),
        ("[publish.deep]\nx = 1", "publish.deep", "is not a key"),
        ("[publish]\n\"wait.x\" = 1", "publish.\"wait.x\"", "is not a key"),
        ("[drain]\nwait = \"5s\"", "drain.wait", "did you mean publish.wait?"),
        ("proxy = \"https://p:1\"", "upstream.proxy", "has a scheme other than http"),
        ("proxy = \"p:3128\"", "upstream.proxy", "has no scheme"),
        (
            "proxy = \"http://u:secret@p:1\"\negress_addresses = [\"10.0.0.1\", \"10.0.0.2\"]",
            "upstream.egress_addresses",
            "has several beside upstream.proxy",
        ),
        ("[fleet]\nurl = \"http://x\"", "fleet.url", "is not a Redis"),
        ("[fleet]\nurl = \"redis://:secret@x\"", "fleet.url", "has a user or password"),
        ("[fleet]\nurl = \"redis://a,b/1\"", "fleet.url", "a Cluster has only the first"),
        ("[fleet]\nurl = \"redis+sentinel://a\"", "fleet.url", "by which name"),
        ("[fleet]\naccount = \"a}b\"", "fleet.account", "is not a name"),
        ("[fleet]\nexpected_sidecars = 0", "fleet.expected_sidecars", "out of range"),
        ("[drain]\nhandoff = true", "drain.handoff", "fleet.url names no Redis"),
        // Types.
        ("[publish]\nwait = 5", "publish.wait", "is a number"),
        ("[publish]\nwait = [\"5s\"]", "publish.wait", "is a list"),
        ("[publish.wait]\nx = 1", "publish.wait", "is a section"),
        ("[publish]\nwait = 07:32:00", "publish.wait", "is a section"),
        ("[publish]\nwait = \"soon\"", "publish.wait", "is not a duration"),
        ("[publish]\nwait = \"5\"", "publish.wait", "is not a duration"),
        ("[publish]\nmax_waiting = \"4096\"", "publish.max_waiting", "not a whole number"),
        ("[publish]\nmax_waiting = 1.5", "publish.max_waiting", "not a whole number"),
        ("[publish]\nratelimit_headers = \"true\"", "publish.ratelimit_headers", "neither true"),
        ("[publish]\nratelimit_headers = 1", "publish.ratelimit_headers", "neither true"),
        ("[publish]\nmax_payload = \"48 potatoes\"", "publish.max_payload", "is not a size"),
        ("[publish]\nmax_payload = -1", "publish.max_payload", "is not a size"),
        ("[topics]\nallow = \"Alarm/*\"", "topics.allow", "must be a list"),
        ("[topics]\nallow = [1]", "topics.allow[0]", "must be text"),
        ("[topics]\nrules = 3", "topics.rules", "list of tables"),
        ("[[topics.rules]]\nttl = \"1s\"", "topics.rules[0]", "no topics"),
        ("[[topics.rules]]\ntopics = [\"A\"]", "topics.rules[0]", "neither ttl nor urgency"),
        ("[[topics.rules]]\ntopics = []\nttl = \"1s\"", "topics.rules[0].topics", "is empty"),
        ("[[topics.rules]]\ntopics = [\"A\"]\nttl = \"0s\"", "topics.rules[0].ttl", "too short"),
        ("[[topics.rules]]\ntopics = [\"A\"]\nttl = 30", "topics.rules[0].ttl", "in quotes"),
        ("[[topics.rules]]\ntopics = [\"A\"]\nurgency = \"x\"", "topics.rules[0].urgency", ""),
        ("[telemetry]\nlog = true", "telemetry.log", "must be text"),
        ("[listen]\npublish = 8080", "listen.publish", "must be a list"),
        // Ranges.
        ("[publish]\nwait = \"0s\"", "publish.wait", "too short"),
        ("[publish]\nwait = \"-5s\"", "publish.wait", "negative"),
        ("[publish]\nwait = \"61s\"", "publish.wait", "too long"),
        ("[publish]\nwait = \"9999999999999h\"", "publish.wait", "too long"),
        ("[publish]\nwait = \"99999999999999999999h\"", "publish.wait", "not a duration"),
        ("[publish]\nmax_waiting = 0", "publish.max_waiting", "out of range"),
        ("[publish]\nmax_waiting = 9223372036854775807", "publish.max_waiting", "out of range"),
        ("[publish]\nmax_connections = -1", "publish.max_connections", "out of range"),
        ("[publish]\nmax_header = \"4KiB\"", "publish.max_header", "8.0 KiB to 1.0 MiB"),
        ("[publish]\nmax_payload = 0", "publish.max_payload", "out of range"),
        ("[publish]\nmax_payload = \"1EiB\"", "publish.max_payload", "out of range"),
        ("idle_timeout = \"10s\"", "upstream.idle_timeout", "too long"),
        ("call_timeout = \"0ms\"", "upstream.call_timeout", "too short"),
        ("[telemetry]\nmax_topics = 1001", "telemetry.max_topics", "1 to 1000"),
        ("[telemetry]\nmax_callers = 0", "telemetry.max_callers", "1 to 1000"),
        ("[publish]\ncloud_events = \"binary\"", "publish.cloud_events", "refuse, structured"),
        ("[publish]\ncloud_event_keys = true", "publish.cloud_event_keys", "are refused"),
        ("[[callers]]\nname = \"other\"\nuid = 1", "callers[0].name", "counted as"),
        ("[ceilings]\nreserve = 1", "ceilings.reserve", "there is none"),
        ("[ceilings]\nreserve = 300\negress_ip = 300", "ceilings.reserve", "leaves nothing"),
        ("[[callers]]\nname = \"a\"\nuid = 1\nweight = 0", "callers[0].weight", "1 to 1000"),
        ("[[callers]]\nname = \"a\"\nuid = 1\nweight = 1001", "callers[0].weight", "1 to 1000"),
        (
            "[[callers]]\nname = \"a\"\nuid = 1\nspool_share = 1.5",
            "callers[0].spool_share",
            "0 to 1",
        ),
        (
            "[[callers]]\nname = \"a\"\nuid = 1\nbudget = \"gone\"",
            "callers",
            "budget gone, which is none",
        ),
        ("[drain]\ngrace = \"2h\"", "drain.grace", "too long"),
        ("[runtime]\nthreads = 100000", "runtime.threads", "out of range"),
        ("[ceilings]\nretry_share = nan", "ceilings.retry_share", "out of range"),
        ("[ceilings]\nretry_share = 1.01", "ceilings.retry_share", "out of range"),
        ("[ceilings]\nretry_share = 2", "ceilings.retry_share", "out of range"),
        ("[ceilings]\nretry_share = -0.1", "ceilings.retry_share", "out of range"),
        ("[ceilings]\naccount = 0", "ceilings.account", "or \"none\""),
        ("[ceilings]\naccount = 99.5", "ceilings.account", "not a whole number"),
        ("[ceilings]\negress_ip = \"all\"", "ceilings.egress_ip", "or \"none\""),
        // Words and formats.
        ("signature = \"hmac-sha2\"", "upstream.signature", "did you mean \"hmac-sha1\"?"),
        ("payload = \"hex\"", "upstream.payload", "base64, plain"),
        ("roots = \"bundeld\"", "upstream.roots", "neither \"bundled\""),
        ("egress_addresses = [\"eth0\"]", "upstream.egress_addresses[0]", "not an IP address"),
        ("egress_addresses = [\"0.0.0.0\"]", "upstream.egress_addresses[0]", "nothing can be"),
        (
            "[keys]\nsource = \"vault\"",
            "keys.source",
            "write one of env, auto, oidc, file, uri, role",
        ),
        ("[keys]\nsource = \"role\"", "keys.role_arn", "set keys.role_arn"),
        (
            "[keys]\nsource = \"role\"\nbase = \"role\"\nrole_arn = \"acs:ram::1:role/r\"",
            "keys.base",
            "It is one of env",
        ),
        ("[keys]\nsts_vpc = true", "keys.sts_vpc", "set keys.sts_region"),
        ("[keys]\npolicy = \"{}\"", "keys.policy", "Statement"),
        ("[keyring]\nrole_arn = \"acs:ram::1:role/r\"", "keyring.listen", "keyring.certificate"),
        (
            "[keyring]\nlisten = \"127.0.0.1:1\"\nrole_arn = \"acs:ram::1:role/r\"\n[[keyring.callers]]\nname = \"shop\"\nsubject = \"s:*\"\n",
            "keyring.callers",
            "keyring.issuers",
        ),
        (
            "[keyring]\nlisten = \"127.0.0.1:1\"\nrole_arn = \"acs:ram::1:role/r\"\n[[keyring.issuers]]\nissuer = \"a\"\njwks = \"https://h/k\"\n[[keyring.issuers]]\nissuer = \"b\"\njwks = \"https://h/k\"\n[[keyring.callers]]\nname = \"shop\"\nsubject = \"s:*\"\n",
            "keyring.callers",
            "write issuer in it",
        ),
        (
            "[keyring]\nlisten = \"127.0.0.1:1\"\nrole_arn = \"acs:ram::1:role/r\"\n[[keyring.issuers]]\nissuer = \"a\"\njwks = \"https://h/k\"\n[[keyring.callers]]\nname = \"shop\"\nsubject = \"s:*\"\nissuer = \"c\"\n",
            "keyring.callers",
            "whose issuer c is not one",
        ),
        (
            "[keyring]\nlisten = \"127.0.0.1:1\"\nrole_arn = \"acs:ram::1:role/r\"\n[[keyring.issuers]]\nissuer = \"a\"\njwks = \"https://h/k\"\n[[keyring.issuers]]\nissuer = \"a\"\njwks = \"https://h/k\"\n[[keyring.callers]]\nname = \"shop\"\ntoken_file = \"/t\"\n",
            "keyring.issuers",
            "two issuers with one name",
        ),
        (
            "[keyring]\nlisten = \"127.0.0.1:1\"\nrole_arn = \"acs:ram::1:role/r\"\n[[keyring.callers]]\nname = \"shop\"\ntoken_file = \"/t\"\ntopics = [\"topic-with-a-long-name-00\", \"topic-with-a-long-name-01\", \"topic-with-a-long-name-02\", \"topic-with-a-long-name-03\", \"topic-with-a-long-name-04\", \"topic-with-a-long-name-05\", \"topic-with-a-long-name-06\", \"topic-with-a-long-name-07\", \"topic-with-a-long-name-08\", \"topic-with-a-long-name-09\", \"topic-with-a-long-name-10\", \"topic-with-a-long-name-11\", \"topic-with-a-long-name-12\", \"topic-with-a-long-name-13\", \"topic-with-a-long-name-14\", \"topic-with-a-long-name-15\", \"topic-with-a-long-name-16\", \"topic-with-a-long-name-17\", \"topic-with-a-long-name-18\", \"topic-with-a-long-name-19\", \"topic-with-a-long-name-20\", \"topic-with-a-long-name-21\", \"topic-with-a-long-name-22\", \"topic-with-a-long-name-23\", \"topic-with-a-long-name-24\", \"topic-with-a-long-name-25\", \"topic-with-a-long-name-26\", \"topic-with-a-long-name-27\", \"topic-with-a-long-name-28\", \"topic-with-a-long-name-29\", \"topic-with-a-long-name-30\", \"topic-with-a-long-name-31\", \"topic-with-a-long-name-32\", \"topic-with-a-long-name-33\", \"topic-with-a-long-name-34\", \"topic-with-a-long-name-35\", \"topic-with-a-long-name-36\", \"topic-with-a-long-name-37\", \"topic-with-a-long-name-38\", \"topic-with-a-long-name-39\", \"topic-with-a-long-name-40\", \"topic-with-a-long-name-41\", \"topic-with-a-long-name-42\", \"topic-with-a-long-name-43\", \"topic-with-a-long-name-44\", \"topic-with-a-long-name-45\", \"topic-with-a-long-name-46\", \"topic-with-a-long-name-47\", \"topic-with-a-long-name-48\", \"topic-with-a-long-name-49\", \"topic-with-a-long-name-50\", \"topic-with-a-long-name-51\", \"topic-with-a-long-name-52\", \"topic-with-a-long-name-53\", \"topic-with-a-long-name-54\", \"topic-with-a-long-name-55\", \"topic-with-a-long-name-56\", \"topic-with-a-long-name-57\", \"topic-with-a-long-name-58\", \"topic-with-a-long-name-59\"]\n",
            "keyring.callers",
            "more than 2048 characters",
        ),
        (
            "[keyring]\nlisten = \"127.0.0.1:1\"\nrole_arn = \"acs:ram::1:role/r\"\nmax_callers = 1\n[[keyring.callers]]\nname = \"a1\"\ntoken_file = \"/t\"\n[[keyring.callers]]\nname = \"b1\"\ntoken_file = \"/u\"\n",
            "keyring.max_callers",
            "for each caller",
        ),
        ("[keys]\nsource = \"vault\"", "keys.source", "env, auto, oidc, file, uri"),
        ("[keys]\nsource = \"file\"\npath = \"\"", "keys.path", "not a path"),
        ("[keys]\nuri = \"unix:/x\"", "keys.uri", "http"),
        ("[keys]\nuri = \"h/x\"", "keys.uri", "is not a URI"),
        ("[listen]\ncontrol = \"127.0.0.1:1\"", "listen.control", "is not a Unix socket"),
        ("[listen]\ncontrol = \"unix:x\"", "listen.control", "not the path of a Unix socket"),
        (
            "[listen]\npublish = \"unix:/x\"\ncontrol = \"unix:/x\"",
            "listen.publish",
            "takes the socket of listen.control",
        ),
        ("[spool]\nstore = \"redis\"", "spool.store", "fleet.url names no Redis"),
        (
            "[ceilings]\naccount = 9\n[fleet]\nurl = \"redis://x\"\n[spool]\nstore = \"none\"\n\
             [drain]\nhandoff = true",
            "drain.handoff",
            "nothing is kept",
        ),
        ("[spool]\nmax_bytes = \"1KiB\"", "spool.max_bytes", "out of range"),
        ("[spool]\npath = \"\"", "spool.path", "not a path"),
        ("[retry]\nbatch = 0", "retry.batch", "out of range"),
        ("[retry]\nbase = \"1m\"", "retry.base", "longer than retry.cap"),
        ("[retry]\nunknown = \"drop\"", "retry.unknown", "not one of"),
        ("[retry]\npark = [\"a/#\"]", "retry.park[0]", "neither + nor #"),
        ("[retry]\ncodes = { X = \"maybe\" }", "retry.codes", "what codes mean"),
        ("[retry]\ncodes = [\"X\"]", "retry.codes", "must be text"),
        ("[idempotency]\nkeep = \"48h\"", "idempotency.keep", "too long"),
        ("[spool]\nstore = \"dsik\"", "spool.store", "did you mean \"disk\"?"),
        ("[topics]\nallow = [\"Alarm/#\"]", "topics.allow[0]", "neither + nor #"),
        ("[topics]\nallow = [\"A\", \"\"]", "topics.allow[1]", "matches no topic"),
        ("[telemetry]\nlevel = \"inof\"", "telemetry.level", "not a level"),
        ("[telemetry]\nlevel = \"info,hyper=lout\"", "telemetry.level", "neither a level"),
        ("[telemetry]\nlevel = \"\"", "telemetry.level", "not a level"),
        ("[listen]\npublish = \"localhost:8080\"", "listen.publish[0]", "not a name"),
        ("[listen]\npublish = \"unix:p.sock\"", "listen.publish[0]", "absolute"),
        ("[listen]\ntelemetry = \"0.0.0.0\"", "listen.telemetry", "with a port"),
        // Values that are right alone, and wrong together.
        ("[listen]\npublish = []", "listen.publish", "no caller can publish"),
        (
            "[listen]\npublish = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
            "listen.publish",
            "names an address twice",
        ),
        ("[listen]\npublish = \"127.0.0.1:9464\"", "listen.publish", "listen.telemetry"),
        (
            "egress_addresses = [\"10.0.0.1\", \"::ffff:10.0.0.1\"]",
            "upstream.egress_addresses",
            "twice",
        ),
        ("connect_timeout = \"4s\"", "upstream.connect_timeout", "upstream.call_timeout (3s)"),
        ("[publish]\nmax_payload = \"49KiB\"", "publish.max_payload", "49152 bytes"),
        ("[keys]\nsource = \"uri\"", "keys.uri", "ALIBABA_CLOUD_CREDENTIALS_URI"),
        // Money.
        ("[billing]\ncurrency = \"yuan\"", "billing.currency", "is not a currency"),
        ("[billing]\nprice_per_million = -1", "billing.price_per_million", "out of range"),
        ("[billing]\nprice_per_million = nan", "billing.price_per_million", "out of range"),
        ("[billing]\ntime_zone = \"Asia/Shangri-La\"", "billing.time_zone", "not a time zone"),
        (
            "[[billing.tiers]]\nfrom = 1\nprice_per_million = 2",
            "billing.tiers",
            "does not go up from 0",
        ),
        (
            "[billing]\nprice_per_million = 1\n[[billing.tiers]]\nfrom = 0\nprice_per_million = 2",
            "billing.price_per_million",
            "beside billing.tiers",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"",
            "billing.budgets[0]",
            "neither messages nor spend",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"\nmessages = 1\nspend = 1",
            "billing.budgets[0]",
            "both messages and spend",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"week\"\nmessages = 1",
            "billing.budgets[0].period",
            "hour, day, month",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"\nmessages = 1\nscope = \"fleet\"",
            "billing.budgets",
            "has a with scope = \"fleet\", and there is no fleet",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"\nmessages = 1\ncut_off = \"send\"",
            "billing.budgets[0]",
            "has cut_off, which is for budgets with scope",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"\nmessages = 1\nscope = \"all\"",
            "billing.budgets[0].scope",
            "",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"\nspend = 1",
            "billing.budgets",
            "cost nothing",
        ),
        (
            "[[billing.budgets]]\nname = \"a\"\nperiod = \"day\"\nmessages = 1\n\
             topics = [\"Alarm/fire\"]",
            "billing.budgets[0].topics[0]",
            "sub-level",
        ),
        // Rules.
        ("instances = 3", "upstream.instances", "list of tables"),
        ("instances = [3]", "upstream.instances[0]", "must be a table"),
        (
            "[[upstream.instances]]\ninstance_id = \"x\"\ntopics = []",
            "upstream.instances[0].topics",
            "never holds",
        ),
        ("[[upstream.instances]]\ntopics = [\"A\"]", "upstream.instances[0]", "no instance_id"),
        ("[[upstream.instances]]\ninstance_id = \"x\"", "upstream.instances[0]", "no topics"),
        (
            "[[upstream.instances]]\ninstance_id = \"x y\"\ntopics = [\"A\"]",
            "upstream.instances[0].instance_id",
            "is not an instance id",
        ),
        (
            "[[upstream.instances]]\ninstance_id = \"x\"\ntopics = [\"A\"]\ntopic = 1",
            "upstream.instances[0].topic",
            "did you mean topics?",
        ),
        (
            "[[upstream.instances]]\ninstance_id = \"x\"\ntopics = [\"A\"]\n\
             [[upstream.instances]]\ninstance_id = \"y\"\ntopics = [\"B\", \"A\"]",
            "upstream.instances[1].topics",
            "names \"A\"",
        ),
        ("payloads = 3", "upstream.payloads", "list of tables"),
        ("[[upstream.payloads]]\nencoding = \"plain\"", "upstream.payloads[0]", "no topics"),
        ("[[upstream.payloads]]\ntopics = [\"A\"]", "upstream.payloads[0]", "no encoding"),
        (
            "[[upstream.payloads]]\ntopics = [\"A\"]\nencoding = \"text\"",
            "upstream.payloads[0].encoding",
            "base64",
        ),
        (
            "[[upstream.payloads]]\ntopics = []\nencoding = \"plain\"",
            "upstream.payloads[0].topics",
            "never holds",
        ),
        (
            "[[upstream.payloads]]\ntopics = [\"A\"]\nencoding = \"plain\"\n\
             [[upstream.payloads]]\ntopics = [\"A\"]\nencoding = \"base64\"",
            "upstream.payloads[1].topics",
            "names \"A\"",
        ),
    ] {
        let file = File::new(format!("{LEAST}{lines}\n"));
        let mistakes = load(Some(&file.path), [], &[]).expect_err(lines);
        let mistake = assert_one(&mistakes, key, words, lines);
        let text = mistake.to_string();
        let is_default = mistake.origin.to_string() == "default";
        assert!(is_default || text.starts_with(&format!("file {}", file.path.display())), "{text}");
        let may = ["keys.uri", "keys.role_arn", "keyring.listen"];
        assert!(!is_default || may.contains(&key), "{text}");
    }
}

#[test]
fn instead_of_the_required_lines() {
    for (file, key, words) in [
        ("[upstream]\ninstance_id = \"x\"", "upstream.endpoint", "is required"),
        ("[upstream]\nendpoint = \"h\"", "upstream.instance_id", "is required"),
        ("upstream.endpoint = \"h\"\nupstream.instance_id = 123", "upstream.instance_id", "quotes"),
        ("upstream = {endpoint = \"h\", instance_id = \"\"}", "upstream.instance_id", "1 to 64"),
        (
            "upstream = {endpoint = \"https://h/x\", instance_id = \"x\"}",
            "upstream.endpoint",
            "path or query",
        ),
        (
            "upstream = {endpoint = \"https://u:p@h\", instance_id = \"x\"}",
            "upstream.endpoint",
            "user or password",
        ),
        (
            "upstream = {endpoint = \"mqtt://h\", instance_id = \"x\"}",
            "upstream.endpoint",
            "other than https",
        ),
        (
            "upstream = {endpoint = \"h:99999\", instance_id = \"x\"}",
            "upstream.endpoint",
            "1 to 65535",
        ),
    ] {
        assert_one(&read(file).expect_err(file), key, words, file);
    }
}

#[test]
fn above_the_published_ceilings() {
    for (lines, key) in [
        ("account = 1001", "ceilings.account"),
        ("account = \"none\"", "ceilings.account"),
        ("egress_ip = 301", "ceilings.egress_ip"),
        ("egress_ip = \"none\"", "ceilings.egress_ip"),
    ] {
        let mistakes = read(&format!("{PROVIDER}[ceilings]\n{lines}\n")).expect_err(lines);
        assert_one(&mistakes, key, "allow_above_published", lines);
        // Other hosts have no published ceiling.
        read(&format!("{LEAST}[ceilings]\n{lines}\n")).unwrap();
    }
    // A full stop at the end or capitals do not make it another host.
    for host in ["ONSMQTT.cn-hangzhou.AliyunCS.com", "onsmqtt.cn-hangzhou.aliyuncs.com."] {
        let file = PROVIDER.replace("onsmqtt.cn-hangzhou.aliyuncs.com", host);
        read(&file).unwrap();
        read(&format!("{file}[ceilings]\naccount = 2000\n")).expect_err(host);
    }
}

#[test]
fn in_the_environment_and_flags() {
    for (name, value, key, words) in [
        ("PUBLISH__WIAT", "5s", "publish.wiat", "did you mean publish.wait?"),
        ("PUBLISH", "5s", "publish", "is not a key"),
        ("PUBLISH__WAIT__", "5s", "publish.wait.", "is not a key"),
        ("", "x", "", "is not a key"),
        ("PUBLISH_WAIT", "5s", "publish_wait", "did you mean publish.wait?"),
        ("PUBLISH__WAIT", "5", "publish.wait", "is not a duration"),
        ("PUBLISH__WAIT", "", "publish.wait", "is not a duration"),
        ("PUBLISH__MAX_WAITING", "many", "publish.max_waiting", "not a whole number"),
        ("PUBLISH__RATELIMIT_HEADERS", "yes", "publish.ratelimit_headers", "neither true"),
        ("CEILINGS__RETRY_SHARE", "NaN", "ceilings.retry_share", "out of range"),
        ("CEILINGS__RETRY_SHARE", "inf", "ceilings.retry_share", "out of range"),
        ("UPSTREAM__EGRESS_ADDRESSES", "10.0.0.1,x", "upstream.egress_addresses[1]", "not an IP"),
        ("TOPICS__ALLOW", "A,,B", "topics.allow[1]", "matches no topic"),
        ("UPSTREAM__INSTANCES", "post-b", "upstream.instances", "in the file"),
        ("RETRY__BATCH", "ten", "retry.batch", "not a whole number"),
    ] {
        let name = format!("TOLLGATE__{name}");
        let mistakes = read_with(LEAST, &[(&name, value)], &[]).expect_err(&name);
        let text = assert_one(&mistakes, key, words, &name).to_string();
        assert!(text.starts_with(&format!("environment {name}: ")), "{text}");

        let flag = key.split('[').next().unwrap();
        let mistakes = read_with(LEAST, &[], &[(flag, value)]).expect_err(key);
        let text = assert_one(&mistakes, key, words, key).to_string();
        assert!(text.starts_with("flag --set: "), "{text}");
    }
    let twice = [("TOLLGATE__PUBLISH__WAIT", "1s"), ("TOLLGATE__Publish__Wait", "2s")];
    let mistakes = read_with(LEAST, &twice, &[]).unwrap_err();
    assert_one(&mistakes, "publish.wait", "given twice", "twice");
}

#[test]
fn files_that_cannot_be_read() {
    let toml = |content: &[u8]| {
        let file = File::new(content);
        load(Some(&file.path), [], &[]).unwrap_err()
    };
    assert_one(&toml(b"[publish]\nwait = \n"), "", "at line 2, column", "no value");
    assert_one(&toml(b"[publish\n"), "", "line 1, column", "no bracket");
    assert_one(&toml(b"[publish]\nwait=\"1s\"\nwait=\"2s\""), "", "duplicate key", "twice");
    assert_one(&toml(b"\xff\xfe"), "", "UTF-8", "bytes");

    let missing = std::path::Path::new("/nonexistent/tollgate.toml");
    let mistakes = load(Some(missing), [], &[]).unwrap_err();
    let text = assert_one(&mistakes, "", "cannot be read", "missing").to_string();
    assert!(text.starts_with("file /nonexistent/tollgate.toml: "), "{text}");
    let folder = load(Some("/".as_ref()), [], &[]).unwrap_err();
    assert_one(&folder, "", "cannot be read", "a folder");
    // What else is wrong for certain is said, too.
    let wrong = owned(&[("TOLLGATE__PUBLISH__WAIT", "never")]);
    assert_eq!(load(Some(missing), wrong, &[]).unwrap_err().iter().count(), 2);
}

#[test]
fn a_section_that_is_a_value() {
    for file in ["drain = 3\n", "drain = []\n", "[[drain]]\ngrace = \"1s\"\n"] {
        let file =
            if file.starts_with('[') { format!("{LEAST}{file}") } else { format!("{file}{LEAST}") };
        assert_one(&read(&file).unwrap_err(), "drain", "must be a section", &file);
        // A variable for the same section must not paper over it.
        let env = [("TOLLGATE__DRAIN__GRACE", "1s")];
        assert_one(&read_with(&file, &env, &[]).unwrap_err(), "drain", "section", &file);
    }
}

#[test]
fn all_mistakes_come_at_once() {
    let file = "stray = 1\n[publish]\nwait = \"0s\"\nmax_header = 1\n[upstream]\n\
        endpoint = \"ftp://x\"\ncall_timeout = true\negress_addresses = [\"a\", \"10.0.0.1\", \"b\"]\n\
        [keys]\nsource = \"vault\"\n[telemetry]\nlevel = \"loud\"\n[oops]\nx = 1\n";
    let env = [("TOLLGATE__DRAIN__GRACE", "never"), ("TOLLGATE__NOPE", "1")];
    let mistakes = read_with(file, &env, &[("runtime.threads", "-1")]).unwrap_err();
    let mut found: Vec<_> = mistakes.iter().map(|mistake| mistake.key.as_str()).collect();
    found.sort_unstable();
    let mut expected = [
        "stray",
        "oops",
        "nope",
        "publish.wait",
        "publish.max_header",
        "upstream.endpoint",
        "upstream.instance_id",
        "upstream.call_timeout",
        "upstream.egress_addresses[0]",
        "upstream.egress_addresses[2]",
        "keys.source",
        "telemetry.level",
        "drain.grace",
        "runtime.threads",
    ];
    expected.sort_unstable();
    assert_eq!(found, expected, "{mistakes}");
    let text = mistakes.to_string();
    assert!(text.starts_with("14 mistakes in the configuration\n"), "{text}");
    assert_eq!(text.lines().count(), 1 + 2 * 14, "{text}");
}
