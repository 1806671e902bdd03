//! A bill as rows of FOCUS, the `FinOps` Open Cost and Usage Specification (1.2, <https://focus.finops.org>): what
//! tools that watch the spend of several clouds read.
//!
//! The costs are what the configured prices make of the messages, not what an invoice says, and each row says so.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::json;

use crate::config::Period;
use crate::meter::{Bill, BillRow, period_around};

/// One row: columns that FOCUS wants, and those that are known here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct FocusRow<'a> {
    billed_cost: f64,
    billing_account_id: &'a str,
    billing_account_name: &'a str,
    billing_currency: &'a str,
    billing_period_end: String,
    billing_period_start: String,
    charge_category: &'a str,
    charge_class: &'a str,
    charge_description: &'a str,
    charge_frequency: &'a str,
    charge_period_end: String,
    charge_period_start: String,
    consumed_quantity: u64,
    consumed_unit: &'a str,
    contracted_cost: f64,
    effective_cost: f64,
    invoice_issuer_name: &'a str,
    list_cost: f64,
    pricing_quantity: u64,
    pricing_unit: &'a str,
    provider_name: &'a str,
    publisher_name: &'a str,
    region_id: &'a str,
    resource_id: &'a str,
    resource_name: &'a str,
    resource_type: &'a str,
    service_category: &'a str,
    service_name: &'a str,
    service_subcategory: &'a str,
    tags: String,
}

/// Whose bill it is.
#[derive(Debug)]
pub(super) struct Account<'a> {
    /// The fleet's name of the account; empty: it has none.
    pub(super) id: &'a str,
    pub(super) region: &'a str,
    pub(super) zone: &'a TimeZone,
}

/// Writes a bill whose rows are of this period.
pub(super) fn write(
    bill: &Bill,
    period: Period,
    account: &Account<'_>,
    to: &mut impl Write,
) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(to);
    for row in &bill.rows {
        let start = row.start.as_deref().unwrap_or_default();
        let start: Timestamp = start.parse().map_err(io::Error::other)?;
        csv.serialize(of(row, start, period, bill, account)).map_err(io::Error::other)?;
    }
    csv.flush()
}

fn of<'a>(
    row: &'a BillRow,
    start: Timestamp,
    period: Period,
    bill: &'a Bill,
    account: &Account<'a>,
) -> FocusRow<'a> {
    // Of a period that the bill has in part, this part.
    let (begins, ends) = period_around(period, start, account.zone);
    let begins = bill.from.parse().map_or(begins, |from| begins.max(from)).to_string();
    let ends = bill.to.parse().map_or(ends, |to| ends.min(to)).to_string();
    let (charge_period_start, charge_period_end) = (begins, ends);
    let (start, end) = period_around(Period::Month, start, account.zone);
    let (billing_period_start, billing_period_end) = (start.to_string(), end.to_string());
    let instance = row.instance.as_deref().unwrap_or_default();
    let mut tags = json!({ "uncertain_messages": row.uncertain });
    for (name, value) in [("topic", &row.topic), ("caller", &row.caller)] {
        if let Some(value) = value {
            tags[name] = value.as_str().into();
        }
    }
    FocusRow {
        billed_cost: row.spend,
        billing_account_id: account.id,
        billing_account_name: account.id,
        billing_currency: &bill.currency,
        billing_period_end,
        billing_period_start,
        charge_category: "Usage",
        charge_class: "",
        charge_description: "Messages sent by SendMessage, at the prices that tollgate is configured with",
        charge_frequency: "Usage-Based",
        charge_period_end,
        charge_period_start,
        consumed_quantity: row.messages,
        consumed_unit: "Messages",
        contracted_cost: row.spend,
        effective_cost: row.spend,
        invoice_issuer_name: "Alibaba Cloud",
        list_cost: row.spend,
        pricing_quantity: row.messages,
        pricing_unit: "Messages",
        provider_name: "Alibaba Cloud",
        publisher_name: "Alibaba Cloud",
        region_id: account.region,
        resource_id: instance,
        resource_name: instance,
        resource_type: "MQTT instance",
        service_category: "Integration",
        service_name: "ApsaraMQ for MQTT",
        service_subcategory: "Messaging",
        tags: tags.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::{By, Subject};

    #[test]
    fn a_row_with_its_periods_in_utc() {
        let row = BillRow {
            start: Some("2026-11-01T00:00:00+08:00".to_owned()),
            instance: Some("post-cn-1".to_owned()),
            topic: Some("Alarm".to_owned()),
            messages: 1_000,
            uncertain: 2,
            spend: 0.5,
            ..BillRow::default()
        };
        let bill = Bill {
            from: "2026-11-01T06:00:00+08:00".to_owned(),
            to: "2026-12-01T00:00:00+08:00".to_owned(),
            time_zone: "Asia/Shanghai".to_owned(),
            by: By { period: Some(Period::Day), subject: Some(Subject::Topic) },
            currency: "CNY".to_owned(),
            priced: true,
            peak_tps: 0,
            fleet: None,
            rows: vec![row],
        };
        let zone = TimeZone::get("Asia/Shanghai").unwrap();
        let account = Account { id: "shop", region: "cn-hangzhou", zone: &zone };
        let mut text = Vec::new();
        write(&bill, Period::Day, &account, &mut text).unwrap();
        let mut read = csv::Reader::from_reader(&*text);
        let names: Vec<_> = read.headers().unwrap().iter().map(str::to_owned).collect();
        let row = read.records().next().unwrap().unwrap();
        let value = |name: &str| &row[names.iter().position(|known| known == name).unwrap()];
        for (name, wanted) in [
            ("ChargePeriodStart", "2026-10-31T22:00:00Z"),
            ("ChargePeriodEnd", "2026-11-01T16:00:00Z"),
            ("BillingPeriodStart", "2026-10-31T16:00:00Z"),
            ("BillingPeriodEnd", "2026-11-30T16:00:00Z"),
            ("BilledCost", "0.5"),
            ("BillingCurrency", "CNY"),
            ("BillingAccountId", "shop"),
            ("ConsumedQuantity", "1000"),
            ("ResourceId", "post-cn-1"),
            ("Tags", r#"{"topic":"Alarm","uncertain_messages":2}"#),
        ] {
            assert_eq!(value(name), wanted, "{name}");
        }
    }
}
