{{/* Of `tollgate keyring`, what the values decide besides its key. */}}
{{- define "tollgate.keyringVariables" -}}
{{- /* [::] is both families, also in a cluster without IPv6. */}}
- { name: TOLLGATE__KEYRING__LISTEN, value: "[::]:9465" }
- { name: TOLLGATE__KEYRING__CERTIFICATE, value: /var/run/secrets/tollgate-tls/tls.crt }
- { name: TOLLGATE__KEYRING__PRIVATE_KEY, value: /var/run/secrets/tollgate-tls/tls.key }
- { name: TOLLGATE__KEYRING__ROLE_ARN, value: {{ .Values.keyring.roleArn | quote }} }
- { name: TOLLGATE__KEYRING__AUDIENCE, value: {{ .Values.keyring.audience | default "tollgate" | quote }} }
{{- end }}

{{/* The content of tollgate.toml. Strings and lists of JSON are strings and lists of TOML. */}}
{{- define "tollgate.file" -}}
{{ .Values.config | trim }}
{{- if eq .Values.mode "keyring" }}
{{- range $table := list "issuers" "callers" }}
{{- range get $.Values.keyring $table }}
[[keyring.{{ $table }}]]
{{- range $key, $value := . }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The container of a keyring. */}}
{{- define "tollgate.keyringBody" -}}
{{- include "tollgate.refuse" . -}}
{{- $probes := .Values.probes | default dict }}
{{- include "tollgate.image" . }}
args: [keyring, --config, /etc/tollgate/tollgate.toml]
env:
  {{- include "tollgate.env" . | trim | nindent 2 }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - { name: keys, containerPort: 9465 }
{{- /* The kubelet does not verify the certificate. Ready: it has a key of its own, and an issuer's key set, if there are issuers. */}}
startupProbe:
  {{- include "tollgate.probe" (dict "changes" $probes.startup "default" (dict "httpGet" (dict "path" "/livez" "port" "keys" "scheme" "HTTPS")
      "periodSeconds" 1 "failureThreshold" 60)) | nindent 2 }}
readinessProbe:
  {{- include "tollgate.probe" (dict "changes" $probes.readiness "default" (dict "httpGet" (dict "path" "/readyz" "port" "keys" "scheme" "HTTPS")
      "periodSeconds" 5)) | nindent 2 }}
livenessProbe:
  {{- include "tollgate.probe" (dict "changes" $probes.liveness "default" (dict "httpGet" (dict "path" "/livez" "port" "keys" "scheme" "HTTPS")
      "periodSeconds" 10 "timeoutSeconds" 5)) | nindent 2 }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "tollgate.securityContext" . | trim | nindent 2 }}
volumeMounts:
  {{- include "tollgate.inputs" . | trim | nindent 2 }}
  - { name: tollgate-tls, mountPath: /var/run/secrets/tollgate-tls, readOnly: true }
  {{- /* Proves to the API server that a pod of the cluster reads its key set; bound to no role. */}}
  - { name: tollgate-api, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true }
{{- end }}

{{- define "tollgate.keyringVolumes" -}}
- name: tollgate-config
  configMap: { name: {{ include "tollgate.configmap" . | quote }} }
- name: tollgate-tls
  secret: { secretName: {{ .Values.keyring.tlsSecret | quote }} }
- name: tollgate-api
  projected:
    sources:
      - serviceAccountToken: { path: token, expirationSeconds: 3607 }
      - configMap: { name: kube-root-ca.crt, items: [{ key: ca.crt, path: ca.crt }] }
{{- with include "tollgate.inputVolumes" . | trim }}
{{ . }}
{{- end }}
{{- end }}
