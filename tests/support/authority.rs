//! A certificate authority of a test's own.

use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd,
};

/// Writes the authority's certificate to `ca.pem` in this folder. Returns a server's certificate from it
/// for these names, and the server's key.
pub fn certify(folder: &Path, names: &[&str]) -> (Certificate, KeyPair) {
    certify_for(folder, names, (1975, 4096))
}

/// The same, valid from the first day of one year to the first of another.
pub fn certify_for(folder: &Path, names: &[&str], years: (i32, i32)) -> (Certificate, KeyPair) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new([]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut certificate = CertificateParams::new(names).unwrap();
    certificate.not_before = date_time_ymd(years.0, 1, 1);
    certificate.not_after = date_time_ymd(years.1, 1, 1);
    (certificate.signed_by(&key, &issuer).unwrap(), key)
}
