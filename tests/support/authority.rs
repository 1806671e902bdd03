//! A certificate authority of a test's own.

use std::path::Path;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType, date_time_ymd,
};

/// Valid whenever a test runs.
const ALWAYS: (i32, i32) = (1975, 4096);

/// An authority, and its certificate.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names, and its key. A name with a colon is a URI.
    pub fn issue(&self, names: &[&str]) -> (Certificate, KeyPair) {
        let is_uri = |name: &&str| name.contains(':');
        let dns = names.iter().filter(|name| !is_uri(name)).map(|name| (*name).to_owned());
        let mut params = CertificateParams::new(dns.collect::<Vec<_>>()).unwrap();
        let uris = names.iter().filter(|name| is_uri(name)).map(|name| uri(name));
        params.subject_alt_names.extend(uris);
        self.sign(params, ALWAYS)
    }

    /// The same for URIs only, whatever they look like.
    pub fn issue_uris(&self, uris: &[&str]) -> (Certificate, KeyPair) {
        let mut params = CertificateParams::new([]).unwrap();
        params.subject_alt_names = uris.iter().map(|text| uri(text)).collect();
        self.sign(params, ALWAYS)
    }

    /// The same for a DNS name, valid from the first day of one year to the first of another.
    pub fn issue_for(&self, name: &str, years: (i32, i32)) -> (Certificate, KeyPair) {
        self.sign(CertificateParams::new([name.to_owned()]).unwrap(), years)
    }

    /// The same, which proves a server only.
    pub fn issue_server(&self, name: &str) -> (Certificate, KeyPair) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, ALWAYS)
    }

    fn sign(&self, mut params: CertificateParams, years: (i32, i32)) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Writes the authority's certificate to `ca.pem` in this folder. Returns a server's certificate from it
/// for these names, and the server's key.
pub fn certify(folder: &Path, names: &[&str]) -> (Certificate, KeyPair) {
    certify_for(folder, names, ALWAYS)
}

/// The same, valid from the first day of one year to the first of another.
pub fn certify_for(folder: &Path, names: &[&str], years: (i32, i32)) -> (Certificate, KeyPair) {
    let authority = Authority::new();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    authority.sign(CertificateParams::new(names).unwrap(), years)
}
