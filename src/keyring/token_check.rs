//! Whether a token of a service account is in order: its issuer, signature, audience and times.
//!
//! `jsonwebtoken` parses and judges; the signatures themselves are verified by `ring`, which TLS uses, too:
//! the crate's own backends are aws-lc, which we do not have, and `rsa`, which has an open advisory.

use std::sync::{Arc, Once};

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation, decode, decode_header};
use ring::signature as ring_signature;
use serde::Deserialize;

use super::issuer_keys::IssuerKeys;

/// How far an issuer's clock may be from ours, in seconds.
const LEEWAY: u64 = 30;

/// What is wrong with a token. It repeats nothing of the token.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenFlaw {
    #[error("it cannot be read")]
    Unreadable,
    #[error("its issuer is unknown")]
    Issuer,
    #[error("its key is unknown to its issuer")]
    Key,
    #[error("its algorithm is not that of its key")]
    Algorithm,
    #[error("its signature is wrong")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    Early,
    #[error("it is for another audience")]
    Audience,
    #[error("it lacks a claim")]
    Claim,
}

#[derive(Deserialize)]
struct IssuerClaim {
    iss: String,
}

#[derive(Deserialize)]
struct SubjectClaim {
    sub: String,
}

/// Whom a token that is in order is of.
pub(super) struct ProvenSubject {
    pub(super) issuer: String,
    pub(super) subject: String,
}

/// The subject of a token that is in order, and who has proven it.
pub(super) async fn subject_of(
    token: &str,
    issuers: &[Arc<IssuerKeys>],
    audience: &str,
) -> Result<ProvenSubject, TokenFlaw> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Only this module uses the crate, so there is no other one.
        let _is_ours = PROVIDER.install_default().is_ok();
    });
    let header = decode_header(token).map_err(|_| TokenFlaw::Unreadable)?;
    // Only to know whose key it claims to have: what it says is believed below.
    let claimed = jsonwebtoken::dangerous::insecure_decode_claims::<IssuerClaim>(token);
    let claimed = claimed.map_err(|_| TokenFlaw::Unreadable)?.iss;
    let issuer = issuers.iter().find(|issuer| issuer.issuer == claimed);
    let issuer = issuer.ok_or(TokenFlaw::Issuer)?;
    let jwk = issuer.key(header.kid.as_deref()).await.ok_or(TokenFlaw::Key)?;
    // The key says which algorithm it is for, never the token.
    let algorithm = algorithm_of(&jwk).ok_or(TokenFlaw::Algorithm)?;
    if header.alg != algorithm {
        return Err(TokenFlaw::Algorithm);
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| TokenFlaw::Key)?;
    let mut validation = Validation::new(algorithm);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_audience(&[audience]);
    validation.set_issuer(&[&issuer.issuer]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    let read = decode::<SubjectClaim>(token, &key, &validation);
    let proven = read.map_err(|error| flaw(&error))?;
    Ok(ProvenSubject { issuer: issuer.issuer.clone(), subject: proven.claims.sub })
}

fn flaw(error: &Error) -> TokenFlaw {
    match error.kind() {
        ErrorKind::InvalidSignature => TokenFlaw::Signature,
        ErrorKind::ExpiredSignature => TokenFlaw::Expired,
        ErrorKind::ImmatureSignature => TokenFlaw::Early,
        ErrorKind::InvalidAudience => TokenFlaw::Audience,
        ErrorKind::InvalidIssuer => TokenFlaw::Issuer,
        ErrorKind::InvalidAlgorithm => TokenFlaw::Algorithm,
        ErrorKind::MissingRequiredClaim(_) => TokenFlaw::Claim,
        _ => TokenFlaw::Unreadable,
    }
}

/// The one algorithm that a key is for.
fn algorithm_of(jwk: &Jwk) -> Option<Algorithm> {
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let named = jwk.common.key_algorithm;
    match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => match named {
            None | Some(KeyAlgorithm::RS256) => Some(Algorithm::RS256),
            Some(KeyAlgorithm::RS384) => Some(Algorithm::RS384),
            Some(KeyAlgorithm::RS512) => Some(Algorithm::RS512),
            Some(_) => None,
        },
        AlgorithmParameters::EllipticCurve(parameters) => match (&parameters.curve, named) {
            (EllipticCurve::P256, None | Some(KeyAlgorithm::ES256)) => Some(Algorithm::ES256),
            (EllipticCurve::P384, None | Some(KeyAlgorithm::ES384)) => Some(Algorithm::ES384),
            _ => None,
        },
        AlgorithmParameters::OctetKeyPair(_) => match named {
            None | Some(KeyAlgorithm::EdDSA) => Some(Algorithm::EdDSA),
            Some(_) => None,
        },
        // Shared secrets, and what is not known.
        _ => None,
    }
}

// === Signatures by ring ===

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(ErrorKind::InvalidKeyFormat.into()),
        rsa_pub_components_from_public_key: |_| Err(ErrorKind::InvalidKeyFormat.into()),
        ec_pub_components_from_private_key: |_, _| Err(ErrorKind::InvalidKeyFormat.into()),
        ed_pub_components_from_private_key: |_, _| Err(ErrorKind::InvalidKeyFormat.into()),
        compute_digest: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    },
};

/// One key, for one algorithm.
struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKeyKind,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the crate wants it so")]
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if !key.family().algorithms().contains(algorithm) {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.kind().clone() }))
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let wrong = |_| signature::Error::new();
        match &self.key {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                // At least 2,048 bits.
                let parameters = match self.algorithm {
                    Algorithm::RS256 => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::RS384 => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::RS512 => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
                    _ => return Err(signature::Error::new()),
                };
                let key = ring_signature::RsaPublicKeyComponents { n, e };
                key.verify(parameters, message, signature).map_err(wrong)
            }
            DecodingKeyKind::SecretOrDer(bytes) => {
                let algorithm: &dyn ring_signature::VerificationAlgorithm = match self.algorithm {
                    Algorithm::ES256 => &ring_signature::ECDSA_P256_SHA256_FIXED,
                    Algorithm::ES384 => &ring_signature::ECDSA_P384_SHA384_FIXED,
                    Algorithm::EdDSA => &ring_signature::ED25519,
                    _ => return Err(signature::Error::new()),
                };
                let key = ring_signature::UnparsedPublicKey::new(algorithm, bytes);
                key.verify(message, signature).map_err(wrong)
            }
        }
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
