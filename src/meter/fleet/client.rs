//! One connection to Redis, and what is asked over it for a fleet's bill. Only here is the client library known.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, Pipeline};
use tokio::time::{Instant, timeout};

use super::changes::FleetSeriesId;
use super::journal::{FleetWrite, Recall, WriteAnswer};
use super::stored::{
    BillKeys, LOSSES, SINCE, SidecarRecord, read_quarter, read_record, record_text,
};
use crate::config;
use crate::meter::ledger::{Minute, SeriesName};
use crate::meter::quarter::Quarter;
use crate::redis_client::{ClientError, PATIENCE, Requirements, connect, load};

/// What Redis runs.
const SCRIPT: &str = include_str!("bill.lua");
/// Says which permissions are missing.
const ACCESS: &str = include_str!("access.lua");

/// What Redis knows of all sidecars. Times are milliseconds of its own clock.
#[derive(Debug, Default)]
pub(super) struct StoredFleet {
    pub(super) now: i64,
    /// When the first write came that it has; `None`: it has none.
    pub(super) since: Option<i64>,
    /// Between which times it has lost something, the latest first.
    pub(super) losses: Vec<(i64, i64)>,
    /// When each wrote last, and its record.
    pub(super) sidecars: Vec<(String, i64, SidecarRecord)>,
}

/// As the script writes it.
type RawAnswer = (String, String, String, Vec<String>);

pub(super) struct BillClient {
    connection: MultiplexedConnection,
    keys: BillKeys,
    sha: String,
}

impl BillClient {
    pub(super) async fn connect(fleet: &config::Fleet) -> Result<Self, ClientError> {
        let keys = BillKeys::new(&fleet.account);
        let all = [keys.seen(), keys.records(), keys.sharing()];
        let wanted = Requirements { keys: &all, access: ACCESS, document: "docs/fleet.md" };
        let (mut connection, _) = connect(fleet, &wanted).await?;
        let sha = load(&mut connection, SCRIPT).await?;
        Ok(Self { connection, keys, sha })
    }

    pub(super) async fn write(
        &mut self,
        id: &str,
        write: &FleetWrite,
        now: Instant,
        texts: &BTreeMap<FleetSeriesId, Arc<str>>,
    ) -> Result<WriteAnswer, ClientError> {
        let mut keys = vec![self.keys.seen(), self.keys.records(), self.keys.sharing()];
        let mut places = BTreeMap::new();
        let mut place = |key: String| {
            let place = *places.entry(key).or_insert_with_key(|key| {
                keys.push(key.clone());
                keys.len()
            });
            place.to_string()
        };
        let text = |id| texts.get(id).map(ToString::to_string).unwrap_or_default();
        let mut rows = Vec::new();
        for ((quarter, id), change) in &write.changes.rows {
            rows.extend([place(self.keys.quarter(*quarter)), text(id)]);
            rows.extend([change.billable, change.uncertain, change.peak].map(|n| n.to_string()));
        }
        for ((second, id), messages) in &write.changes.seconds {
            rows.push(place(self.keys.second(*second)));
            rows.push(place(self.keys.quarter(Quarter::of_second(*second))));
            rows.extend([text(id), messages.to_string()]);
        }
        for claim in &write.claims {
            rows.push(place(self.keys.budget(&claim.name, claim.period)));
            rows.extend([claim.limit, claim.seen].map(|n| n.to_string()));
            rows.push(claim.counted.to_string());
            rows.extend([claim.back, claim.want].map(|n| n.to_string()));
            rows.push(claim.life(write.record.at).as_millis().to_string());
        }
        let Recall { of, members, ceiling } = write.recall;
        // Now, and not when the write was made: it may be repeated for long.
        let age = of.map(|of| now.saturating_duration_since(of));
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(keys.len()).arg(keys).arg(id).arg(write.after);
        command.arg(record_text(write.number, &write.record));
        command.arg(write.lost_since.map(|since| since.to_string()).unwrap_or_default());
        command.arg(age.map(|age| age.as_millis().to_string()).unwrap_or_default());
        command.arg(members).arg(ceiling);
        command.arg(write.changes.rows.len()).arg(write.changes.seconds.len());
        command.arg(u8::from(write.record.ended)).arg(rows);
        let reply = timeout(PATIENCE, command.query_async(&mut self.connection)).await;
        let (number, now, members, grants): RawAnswer =
            reply.map_err(|_| ClientError::Silent)??;
        let read = || {
            let grants = grants.iter().map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>()?;
            let (pairs, rest) = grants.as_chunks::<2>();
            let grants = pairs.iter().map(|[grant, total]| (*grant, *total)).collect();
            let (number, now) = (number.parse().ok()?, now.parse().ok()?);
            rest.is_empty().then_some(())?;
            Some(WriteAnswer { number, now, members: members.parse().ok()?, grants })
        };
        read().ok_or(ClientError::Garbled)
    }

    /// All sidecars that have written.
    pub(super) async fn fleet(&mut self) -> Result<StoredFleet, ClientError> {
        let mut first = redis::pipe();
        first.cmd("TIME");
        first.cmd("ZRANGE").arg(self.keys.seen()).arg(0).arg(-1).arg("WITHSCORES");
        let ((seconds, micros), seen): ((i64, i64), Vec<(String, f64)>) = self.ask(&first).await?;
        let mut fields: Vec<_> = seen.iter().map(|(id, _)| id.as_str()).collect();
        fields.extend([SINCE, LOSSES]);
        let mut second = redis::pipe();
        second.cmd("HMGET").arg(self.keys.records()).arg(fields);
        let (mut records,): (Vec<Option<String>>,) = self.ask(&second).await?;
        let losses = records.pop().flatten().unwrap_or_default();
        let since = records.pop().flatten().and_then(|since| since.parse().ok());
        let loss = |loss: &str| {
            let (from, to) = loss.split_once(' ')?;
            from.parse().ok().zip(to.parse().ok())
        };
        let sidecars = seen.into_iter().zip(records).filter_map(|((id, seen), record)| {
            // Redis keeps scores as floating-point numbers; milliseconds are exact in them.
            #[expect(clippy::cast_possible_truncation, reason = "a time")]
            Some((id, seen as i64, read_record(&record?)?))
        });
        Ok(StoredFleet {
            now: seconds * 1_000 + micros / 1_000,
            since,
            losses: losses.split(',').filter_map(loss).collect(),
            sidecars: sidecars.collect(),
        })
    }

    /// The messages of these quarters.
    pub(super) async fn quarters(
        &mut self,
        quarters: &[Quarter],
    ) -> Result<Vec<BTreeMap<SeriesName, Minute>>, ClientError> {
        let mut pipe = redis::pipe();
        for quarter in quarters {
            pipe.cmd("HGETALL").arg(self.keys.quarter(*quarter));
        }
        let read: Vec<Vec<(String, String)>> = self.ask(&pipe).await?;
        Ok(read.into_iter().map(read_quarter).collect())
    }

    /// A script whose time a test sets, in milliseconds.
    #[cfg(all(test, feature = "redis-tests"))]
    pub(super) async fn read_clock_from(&mut self, key: &str) -> Result<(), ClientError> {
        let clock = format!("{{ 0, redis.call('GET', '{key}') * 1000 }}");
        let script = SCRIPT.replace("redis.call('TIME')", &clock);
        self.sha = load(&mut self.connection, &script).await?;
        Ok(())
    }

    async fn ask<T: FromRedisValue>(&mut self, pipe: &Pipeline) -> Result<T, ClientError> {
        let reply = timeout(PATIENCE, pipe.query_async(&mut self.connection)).await;
        Ok(reply.map_err(|_: tokio::time::error::Elapsed| ClientError::Silent)??)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
        let after = text.split(before).skip(1);
        after.filter_map(|rest| rest.split(['\'', '"']).next()).collect()
    }

    #[test]
    fn permissions_are_those_of_the_script_and_of_the_reader() {
        let mut called = names(SCRIPT, "redis.call('");
        let code = include_str!("client.rs").split("#[cfg(test)]").next().unwrap();
        called.extend(names(code, ".cmd(\""));
        assert_eq!(called, names(ACCESS, "needs('"));
        let documented = include_str!("../../../docs/fleet.md");
        let line = documented.lines().find(|line| line.contains("ACL SETUSER")).unwrap();
        let given: BTreeSet<_> = line.split(" +").skip(1).map(str::to_uppercase).collect();
        for name in called {
            assert!(given.contains(name), "{name} is not in docs/fleet.md");
        }
    }
}
