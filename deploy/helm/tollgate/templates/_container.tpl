{{/* All variables: what the manifests decide, the identity of RRSA, and yours. */}}
{{- define "tollgate.env" -}}
{{ include "tollgate.variables" . | trim }}
{{- include "tollgate.parts" . }}
{{- with .Values.rrsa }}
{{- if .roleArn }}
- { name: ALIBABA_CLOUD_ROLE_ARN, value: {{ .roleArn | quote }} }
- { name: ALIBABA_CLOUD_OIDC_PROVIDER_ARN, value: {{ .oidcProviderArn | quote }} }
- { name: ALIBABA_CLOUD_OIDC_TOKEN_FILE, value: /var/run/secrets/ack.alibabacloud.com/rrsa-tokens/token }
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tollgate.image" -}}
{{- $image := .Values.image | default dict }}
{{- $repository := $image.repository | default "tollgate" }}
image: {{ empty $image.digest | ternary (printf "%s:%s" $repository ($image.tag | default .Chart.AppVersion)) (printf "%s@%s" $repository $image.digest) | quote }}
{{- with $image.pullPolicy }}
imagePullPolicy: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "tollgate.securityContext" -}}
{{- $default := dict "runAsNonRoot" true "runAsUser" 65532 "runAsGroup" 65532 "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true
    "capabilities" (dict "drop" (list "ALL")) "seccompProfile" (dict "type" "RuntimeDefault") }}
{{- range $key, $value := .Values.securityContext }}{{ $_ := set $default $key $value }}{{ end }}
{{- toYaml $default }}
{{- end }}

{{/* With the emptyDir's size: the scheduler then knows of it. No limit: it would hold for the whole pod, the app included. */}}
{{- define "tollgate.resources" -}}
{{- $resources := deepCopy (.Values.resources | default dict) }}
{{- if eq (include "tollgate.volume" .) "emptyDir" }}
{{- $requests := $resources.requests | default dict }}
{{- if not (hasKey $requests "ephemeral-storage") }}
{{- $_ := set $requests "ephemeral-storage" ((.Values.spool | default dict).size | default "1Gi" | toString) }}
{{- end }}
{{- $_ := set $resources "requests" $requests }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "tollgate.probe" -}}
{{- $probe := .default }}
{{- range $key, $value := .changes }}{{ $_ := set $probe $key $value }}{{ end }}
{{- toYaml $probe }}
{{- end }}

{{/* Mounts that every container of tollgate has, also that of the checks. */}}
{{- define "tollgate.inputs" -}}
- { name: tollgate-config, mountPath: /etc/tollgate, readOnly: true }
{{- if .Values.secret }}
- { name: tollgate-key, mountPath: /var/run/secrets/tollgate, readOnly: true }
{{- end }}
{{- if (.Values.rrsa | default dict).roleArn }}
- { name: tollgate-oidc, mountPath: /var/run/secrets/ack.alibabacloud.com/rrsa-tokens, readOnly: true }
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tollgate.inputVolumes" -}}
{{- if .Values.secret }}
- name: tollgate-key
  secret: { secretName: {{ .Values.secret | quote }} }
{{- end }}
{{- with .Values.rrsa }}
{{- if .roleArn }}
- name: tollgate-oidc
  projected:
    sources:
      - serviceAccountToken:
          path: token
          audience: {{ .audience | default "sts.aliyuncs.com" | quote }}
          expirationSeconds: {{ .expirationSeconds | default 3600 | int }}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "tollgate.body" -}}
{{- include "tollgate.refuse" . -}}
{{- $gateway := eq .Values.mode "gateway" }}
{{- $probes := .Values.probes | default dict }}
{{- include "tollgate.image" . }}
args: [serve, --config, /etc/tollgate/tollgate.toml]
env:
  {{- include "tollgate.env" . | trim | nindent 2 }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  {{- if $gateway }}
  - { name: publish, containerPort: {{ (.Values.publish | default dict).port | default 15080 }} }
  {{- end }}
  - { name: telemetry, containerPort: 9464 }
{{- /*
Every second: the app's containers start only after this probe passes. For as long as a predecessor may hold the
spool of a claim, and a minute.
*/}}
startupProbe:
  {{- include "tollgate.probe" (dict "changes" $probes.startup "default" (dict "httpGet" (dict "path" "/startupz" "port" "telemetry")
      "periodSeconds" 1 "failureThreshold" (add 80 (include "tollgate.stopSeconds" . | int)))) | nindent 2 }}
readinessProbe:
  {{- include "tollgate.probe" (dict "changes" $probes.readiness "default" (dict "httpGet" (dict "path" "/readyz" "port" "telemetry")
      "periodSeconds" 2)) | trim | nindent 2 }}
livenessProbe:
  {{- include "tollgate.probe" (dict "changes" $probes.liveness "default" (dict "httpGet" (dict "path" "/livez" "port" "telemetry")
      "periodSeconds" 10 "timeoutSeconds" 5)) | trim | nindent 2 }}
resources:
  {{- include "tollgate.resources" . | trim | nindent 2 }}
securityContext:
  {{- include "tollgate.securityContext" . | trim | nindent 2 }}
volumeMounts:
  {{- include "tollgate.inputs" . | trim | nindent 2 }}
  - { name: tollgate-spool, mountPath: /var/lib/tollgate }
  - { name: tollgate-run, mountPath: /run/tollgate }
  {{- /* Hides the pod's service account token from tollgate; other containers may need it. */}}
  - { name: tollgate-no-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true }
{{- end }}
